/* The C interface on a CUDA device, or over the emulated runtime: if this fails, C programs on a GPU train
   otherwise than on the CPU. Usage: c_api_on_cuda_test FOLDER (for what it saves). Exits with 77 where there
   is no device, unless FLASHOPTIM_REQUIRE_GPU=1. */
#include <cuda_runtime_api.h>
#include <flashoptim/c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../bindings/capi/support.h"

/* A weight, its gradient and its optimizer, which has them in memory of the host or of the device. */
typedef struct run {
    float weight[COUNT], gradient[COUNT], master[COUNT];
    float *given_weight, *given_gradient;
    int32_t place;
    flashoptim_optimizer* optimizer;
} run;

#define EXPECT_CUDA(call) EXPECT((call) == cudaSuccess)

static void upload_gradient(run* r) {
    if (r->place == FLASHOPTIM_HOST) return;
    EXPECT_CUDA(cudaMemcpy(r->given_gradient, r->gradient, sizeof r->gradient, cudaMemcpyHostToDevice));
}
static void download_weight(run* r) {
    if (r->place == FLASHOPTIM_HOST) return;
    EXPECT_CUDA(cudaMemcpy(r->weight, r->given_weight, sizeof r->weight, cudaMemcpyDeviceToHost));
}

static void make_run(run* r, int32_t place, int32_t nonfinite) {
    flashoptim_options options;
    flashoptim_tensor weight = FLASHOPTIM_TENSOR_INIT;
    flashoptim_tensor gradient = FLASHOPTIM_TENSOR_INIT;
    int n;
    r->place = place;
    r->given_weight = r->weight;
    r->given_gradient = r->gradient;
    for (n = 0; n < COUNT; ++n) {
        r->weight[n] = (float)(n % 97) / 97.0f - 0.5f;
        r->gradient[n] = (float)(n % 89) / 890.0f - 0.05f;
    }
    if (place == FLASHOPTIM_CUDA) {
        EXPECT_CUDA(cudaMalloc((void**)&r->given_weight, sizeof r->weight));
        EXPECT_CUDA(cudaMalloc((void**)&r->given_gradient, sizeof r->gradient));
        EXPECT_CUDA(cudaMemcpy(r->given_weight, r->weight, sizeof r->weight, cudaMemcpyHostToDevice));
    }
    weight.ndim = gradient.ndim = 2;
    weight.shape = gradient.shape = shape;
    weight.data = r->given_weight;
    gradient.data = r->given_gradient;
    upload_gradient(r);
    EXPECT_OK(flashoptim_options_init(&options, sizeof options));
    EXPECT(options.place == FLASHOPTIM_HOST && options.device == 0 && options.stream == NULL);
    options.place = place;
    options.nonfinite = nonfinite;
    EXPECT_OK(flashoptim_create(FLASHOPTIM_ADAMW, NULL, &options, &r->optimizer));
    EXPECT_OK(flashoptim_add_parameter(r->optimizer, &weight, "w", 0, NULL, NULL));
    EXPECT_OK(flashoptim_set_gradient(r->optimizer, 0, &gradient));
}

static void end_run(run* r) {
    flashoptim_destroy(r->optimizer);
    if (r->place == FLASHOPTIM_HOST) return;
    EXPECT_CUDA(cudaFree(r->given_weight));
    EXPECT_CUDA(cudaFree(r->given_gradient));
}

static void expect_same(run* host, run* device) {
    double norm[2];
    uint64_t bad[2];
    int64_t steps[2];
    download_weight(device);
    EXPECT(memcmp(host->weight, device->weight, sizeof host->weight) == 0);
    EXPECT_OK(flashoptim_copy_master(host->optimizer, 0, host->master, COUNT));
    EXPECT_OK(flashoptim_copy_master(device->optimizer, 0, device->master, COUNT));
    EXPECT(memcmp(host->master, device->master, sizeof host->master) == 0);
    EXPECT(largest_distance(host->master, device->master, COUNT) == 0); /* numbers, not two NaNs */
    EXPECT_OK(flashoptim_copy_moment(host->optimizer, 0, FLASHOPTIM_SECOND_MOMENT, host->master, COUNT));
    EXPECT_OK(flashoptim_copy_moment(device->optimizer, 0, FLASHOPTIM_SECOND_MOMENT, device->master, COUNT));
    EXPECT(memcmp(host->master, device->master, sizeof host->master) == 0);
    EXPECT(largest_distance(host->master, device->master, COUNT) == 0); /* numbers, not two NaNs */
    EXPECT_OK(flashoptim_grad_norm(host->optimizer, &norm[0]));
    EXPECT_OK(flashoptim_grad_norm(device->optimizer, &norm[1]));
    EXPECT(norm[0] == norm[1]);
    EXPECT_OK(flashoptim_bad_elements(host->optimizer, 0, &bad[0]));
    EXPECT_OK(flashoptim_bad_elements(device->optimizer, 0, &bad[1]));
    EXPECT(bad[0] == bad[1]);
    EXPECT_OK(flashoptim_step_count(host->optimizer, 0, &steps[0]));
    EXPECT_OK(flashoptim_step_count(device->optimizer, 0, &steps[1]));
    EXPECT(steps[0] == steps[1]);
}

enum { SKIPPED = 77 };

static run host, device;

static void test_same_bits_and_checkpoints(const char* folder) {
    char path[4096];
    int t;
    make_run(&host, FLASHOPTIM_HOST, FLASHOPTIM_NONFINITE_SKIP_ELEMENT);
    make_run(&device, FLASHOPTIM_CUDA, FLASHOPTIM_NONFINITE_SKIP_ELEMENT);
    device.gradient[5] = host.gradient[5] = 1e30f; /* counted, not stepped */
    upload_gradient(&device);
    for (t = 0; t < 3; ++t) {
        EXPECT_OK(flashoptim_step(host.optimizer, NULL, NULL));
        EXPECT_OK(flashoptim_step(device.optimizer, NULL, NULL));
    }
    expect_same(&host, &device);
    EXPECT_OK(flashoptim_set_stream(device.optimizer, NULL));
    EXPECT(flashoptim_set_stream(host.optimizer, NULL) == FLASHOPTIM_INVALID_ARGUMENT);

    snprintf(path, sizeof path, "%s/c_api_on_cuda", folder);
    EXPECT_OK(flashoptim_save(device.optimizer, path, 1));
    EXPECT_OK(flashoptim_load(host.optimizer, path, 1, 0, NULL));
    EXPECT_OK(flashoptim_step(host.optimizer, NULL, NULL));
    EXPECT_OK(flashoptim_step(device.optimizer, NULL, NULL));
    download_weight(&device);
    EXPECT(memcmp(host.weight, device.weight, sizeof host.weight) == 0);
    end_run(&host);
    end_run(&device);
}

/* A loss scaler's numbers in memory of the device. */
static void test_numbers(void) {
    float scale = 3.0f, found_inf = 0.0f;
    float *scale_there = NULL, *found_inf_there = NULL;
    const double *norm = NULL, *norm_there = NULL;
    double given = 0;
    int t;
    make_run(&host, FLASHOPTIM_HOST, FLASHOPTIM_NONFINITE_SKIP_ELEMENT);
    make_run(&device, FLASHOPTIM_CUDA, FLASHOPTIM_NONFINITE_SKIP_ELEMENT);
    EXPECT_CUDA(cudaMalloc((void**)&scale_there, sizeof scale));
    EXPECT_CUDA(cudaMalloc((void**)&found_inf_there, sizeof found_inf));
    EXPECT_CUDA(cudaMemcpy(scale_there, &scale, sizeof scale, cudaMemcpyHostToDevice));
    EXPECT_OK(flashoptim_set_grad_scale(host.optimizer, &scale));
    EXPECT_OK(flashoptim_set_grad_scale(device.optimizer, scale_there));
    EXPECT_OK(flashoptim_set_found_inf(host.optimizer, &found_inf));
    EXPECT_OK(flashoptim_set_found_inf(device.optimizer, found_inf_there));
    for (t = 0; t < 4; ++t) {
        found_inf = t == 1 ? 1.0f : 0.0f;
        EXPECT_CUDA(cudaMemcpy(found_inf_there, &found_inf, sizeof found_inf, cudaMemcpyHostToDevice));
        EXPECT_OK(flashoptim_clip_grad_norm(host.optimizer, 0.25, &norm));
        EXPECT_OK(flashoptim_clip_grad_norm(device.optimizer, 0.25, &norm_there));
        EXPECT_CUDA(cudaMemcpy(&given, norm_there, sizeof given, cudaMemcpyDeviceToHost));
        EXPECT(given == *norm);
        EXPECT_OK(flashoptim_step(host.optimizer, NULL, NULL));
        EXPECT_OK(flashoptim_step(device.optimizer, NULL, NULL));
    }
    expect_same(&host, &device);
    EXPECT(flashoptim_set_found_inf(device.optimizer, &found_inf) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "found_inf lies in memory of the host") != NULL);
    end_run(&host);
    end_run(&device);
    EXPECT_CUDA(cudaFree(scale_there));
    EXPECT_CUDA(cudaFree(found_inf_there));
}

static void test_policies(void) {
    uint64_t bad = 0;
    int32_t skipped = 0;
    make_run(&device, FLASHOPTIM_CUDA, FLASHOPTIM_NONFINITE_SKIP_STEP);
    device.gradient[7] = 1e30f;
    upload_gradient(&device);
    EXPECT_OK(flashoptim_step(device.optimizer, &bad, &skipped));
    EXPECT(bad == 1 && skipped == 1);
    end_run(&device);
    make_run(&device, FLASHOPTIM_CUDA, FLASHOPTIM_NONFINITE_ERROR);
    device.gradient[7] = 1e30f;
    upload_gradient(&device);
    EXPECT(flashoptim_step(device.optimizer, NULL, NULL) == FLASHOPTIM_NONFINITE);
    end_run(&device);
}

static void test_refusals(void) {
    flashoptim_options options;
    flashoptim_optimizer* none = NULL;
    flashoptim_tensor of_host = {sizeof of_host, host.weight, FLASHOPTIM_FLOAT32, 2, shape, NULL};
    char text[64];
    EXPECT_OK(flashoptim_options_init(&options, sizeof options));
    options.place = FLASHOPTIM_CUDA;
    EXPECT_OK(flashoptim_create(FLASHOPTIM_ADAMW, NULL, &options, &none));
    EXPECT(flashoptim_add_parameter(none, &of_host, "w", 0, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "w lies in memory of the host") != NULL);
    flashoptim_destroy(none);
    none = NULL;
    options.device = flashoptim_cuda_device_count();
    EXPECT(flashoptim_create(FLASHOPTIM_ADAMW, NULL, &options, &none) == FLASHOPTIM_DEVICE_ERROR);
    snprintf(text, sizeof text, "CUDA device %d does not exist", (int)options.device);
    EXPECT(strstr(flashoptim_last_error(), text) != NULL);
    options.place = 2;
    EXPECT(flashoptim_create(FLASHOPTIM_ADAMW, NULL, &options, &none) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "place is 2") != NULL);
    /* A program of before devices knows less of the struct. */
    options.size = offsetof(flashoptim_options, place);
    EXPECT_OK(flashoptim_create(FLASHOPTIM_ADAMW, NULL, &options, &none));
    flashoptim_destroy(none);
}

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    if (flashoptim_cuda_device_count() == 0) {
        const char* const required = getenv("FLASHOPTIM_REQUIRE_GPU");
        puts("no CUDA device");
        return required != NULL && strcmp(required, "1") == 0 ? EXIT_FAILURE : SKIPPED;
    }
    test_same_bits_and_checkpoints(argv[1]);
    test_numbers();
    test_policies();
    test_refusals();
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
