/* The program of main.cpp in C. */
#include <flashoptim/c_api.h>
#include <stdio.h>

int main(void) {
    float weight[7] = {1, 1, 1, 1, 1, 1, 1}, gradient[7] = {1, 1, 1, 1, 1, 1, 1};
    const int64_t shape[] = {7};
    flashoptim_tensor weight_view = FLASHOPTIM_TENSOR_INIT, gradient_view = FLASHOPTIM_TENSOR_INIT;
    flashoptim_memory memory = FLASHOPTIM_MEMORY_INIT;
    flashoptim_optimizer* optimizer = NULL;
    size_t id = 0;
    weight_view.data = weight;
    gradient_view.data = gradient;
    weight_view.ndim = gradient_view.ndim = 1;
    weight_view.shape = gradient_view.shape = shape;
    if (flashoptim_create(FLASHOPTIM_ADAMW, NULL, NULL, &optimizer) ||
        flashoptim_add_parameter(optimizer, &weight_view, "weight", 0, NULL, &id) ||
        flashoptim_set_gradient(optimizer, id, &gradient_view) || flashoptim_step(optimizer, NULL, NULL) ||
        flashoptim_memory_report(optimizer, &memory)) {
        return 1;
    }
    printf("%lld parameters\n", (long long)memory.parameters);
    flashoptim_destroy(optimizer);
    return weight[0] < 1 ? 0 : 1;
}
