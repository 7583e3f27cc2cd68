/* The C interface as a C program uses it: if this fails, C, and every language that binds to it, cannot
   train. Usage: c_api_test FOLDER (for what it saves). */
#include <flashoptim/c_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

/* A number in (-1, 1) that follows from its place. */
static float noise(unsigned place) {
    unsigned x = place * 2654435761u + 12345u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    return (float)(int)(x & 0xffffu) / 32768.0f - 1.0f;
}
static uint16_t bfloat16_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static flashoptim_tensor tensor_of(void* data, int32_t dtype) {
    flashoptim_tensor tensor = FLASHOPTIM_TENSOR_INIT;
    tensor.data = data;
    tensor.dtype = dtype;
    tensor.ndim = 2;
    tensor.shape = shape;
    tensor.strides = NULL;
    return tensor;
}

/* A weight, its gradient and its optimizer. */
typedef struct run {
    uint16_t weight[COUNT];
    uint16_t gradient[COUNT];
    flashoptim_optimizer* optimizer;
    size_t parameter;
} run;

static void make_run(run* r, int32_t rule, const flashoptim_options* options) {
    flashoptim_tensor weight = tensor_of(r->weight, FLASHOPTIM_BFLOAT16);
    int n;
    for (n = 0; n < COUNT; ++n) r->weight[n] = bfloat16_of(noise((unsigned)n));
    r->optimizer = NULL;
    EXPECT_OK(flashoptim_create(rule, NULL, options, &r->optimizer));
    EXPECT(r->optimizer != NULL);
    EXPECT_OK(flashoptim_add_parameter(r->optimizer, &weight, "layer.weight", 0, NULL, &r->parameter));
}
static void take_steps(run* r, unsigned first, unsigned count) {
    flashoptim_tensor gradient = tensor_of(r->gradient, FLASHOPTIM_BFLOAT16);
    unsigned t, n;
    for (t = first; t < first + count; ++t) {
        for (n = 0; n < COUNT; ++n) r->gradient[n] = bfloat16_of(noise(n + 7919u * t));
        EXPECT_OK(flashoptim_set_gradient(r->optimizer, r->parameter, &gradient));
        EXPECT_OK(flashoptim_step(r->optimizer, NULL, NULL));
    }
}
static void masters(const run* r, float* values) {
    EXPECT_OK(flashoptim_copy_master(r->optimizer, r->parameter, values, COUNT));
}

static void test_versions(void) {
    EXPECT(flashoptim_abi_version() == FLASHOPTIM_ABI_VERSION);
    EXPECT(strlen(flashoptim_version()) >= 5);
}

/* Every rule moves a weight and counts its steps. */
static void test_all_rules_step(void) {
    static run r;
    static float before[COUNT], after[COUNT];
    int32_t rule;
    for (rule = FLASHOPTIM_SGD; rule <= FLASHOPTIM_ADAN; ++rule) {
        int64_t steps = 0;
        size_t count = 0;
        make_run(&r, rule, NULL);
        masters(&r, before);
        take_steps(&r, 0, 3);
        masters(&r, after);
        EXPECT(largest_distance(before, after, COUNT) > 0);
        EXPECT_OK(flashoptim_step_count(r.optimizer, r.parameter, &steps));
        EXPECT(steps == 3);
        EXPECT_OK(flashoptim_parameter_count(r.optimizer, &count));
        EXPECT(count == 1);
        flashoptim_destroy(r.optimizer);
    }
    flashoptim_destroy(NULL);
}

/* 7.125 bytes per parameter, as promised. */
static void test_memory_report(void) {
    static run r;
    flashoptim_memory memory = FLASHOPTIM_MEMORY_INIT;
    make_run(&r, FLASHOPTIM_ADAMW, NULL);
    take_steps(&r, 0, 1);
    EXPECT_OK(flashoptim_memory_report(r.optimizer, &memory));
    EXPECT(memory.parameters == COUNT);
    EXPECT(memory.weights == 2 * COUNT && memory.gradients == 2 * COUNT);
    EXPECT(memory.corrections == COUNT && memory.moments == 2 * COUNT && memory.scales == COUNT / 8);
    EXPECT(memory.total * 8 == (uint64_t)COUNT * 57);
    EXPECT_OK(flashoptim_clear_gradient(r.optimizer, r.parameter));
    EXPECT_OK(flashoptim_memory_report(r.optimizer, &memory));
    EXPECT(memory.gradients == 0);
    memory.size = 1;
    EXPECT(flashoptim_memory_report(r.optimizer, &memory) == FLASHOPTIM_INVALID_ARGUMENT);
    flashoptim_destroy(r.optimizer);
}

/* A resumed run ends in the same bits as one that never stopped. */
static void test_save_and_load(const char* folder) {
    static run whole, first, second;
    static float expected[COUNT], resumed[COUNT];
    char path[4096];
    size_t converted = 99;
    flashoptim_options options;
    snprintf(path, sizeof path, "%s/c-api-checkpoint", folder);
    make_run(&whole, FLASHOPTIM_ADAMW, NULL);
    take_steps(&whole, 0, 7);
    make_run(&first, FLASHOPTIM_ADAMW, NULL);
    take_steps(&first, 0, 4);
    EXPECT_OK(flashoptim_save(first.optimizer, path, 1));

    make_run(&second, FLASHOPTIM_ADAMW, NULL);
    EXPECT_OK(flashoptim_load(second.optimizer, path, 1, 0, &converted));
    EXPECT(converted == 0);
    take_steps(&second, 4, 3);
    masters(&whole, expected);
    masters(&second, resumed);
    EXPECT(memcmp(expected, resumed, sizeof expected) == 0 &&
           largest_distance(expected, resumed, COUNT) == 0);
    flashoptim_destroy(second.optimizer);

    EXPECT_OK(flashoptim_options_init(&options, sizeof options));
    options.format = FLASHOPTIM_FORMAT_FLOAT32;
    make_run(&second, FLASHOPTIM_ADAMW, &options);
    EXPECT(flashoptim_load(second.optimizer, path, 1, 0, NULL) == FLASHOPTIM_FORMAT_ERROR);
    EXPECT(strstr(flashoptim_last_error(), "layer.weight") != NULL);
    EXPECT_OK(flashoptim_load(second.optimizer, path, 1, 1, &converted));
    EXPECT(converted == 1);
    flashoptim_destroy(second.optimizer);

    make_run(&second, FLASHOPTIM_LION, NULL);
    EXPECT(flashoptim_load(second.optimizer, path, 1, 1, NULL) == FLASHOPTIM_FORMAT_ERROR);
    EXPECT(strstr(flashoptim_last_error(), "AdamW") != NULL);
    snprintf(path, sizeof path, "%s/no-such-checkpoint", folder);
    EXPECT(flashoptim_load(second.optimizer, path, 1, 1, NULL) == FLASHOPTIM_IO_ERROR);
    flashoptim_destroy(second.optimizer);
    flashoptim_destroy(first.optimizer);
    flashoptim_destroy(whole.optimizer);
}

/* Bad gradients are skipped, or stop the step, as the policy says, and are counted. */
static void test_nonfinite_policies(void) {
    static run r;
    static float before[COUNT], after[COUNT];
    flashoptim_options options;
    flashoptim_tensor gradient = tensor_of(r.gradient, FLASHOPTIM_BFLOAT16);
    int32_t policy;
    EXPECT_OK(flashoptim_options_init(&options, sizeof options));
    for (policy = FLASHOPTIM_NONFINITE_SKIP_ELEMENT; policy <= FLASHOPTIM_NONFINITE_ERROR; ++policy) {
        uint64_t bad = 0, counted = 0;
        int32_t skipped = -1;
        int64_t steps = -1;
        flashoptim_status status;
        options.nonfinite = policy;
        make_run(&r, FLASHOPTIM_SGD, &options);
        masters(&r, before);
        memset(r.gradient, 0, sizeof r.gradient);
        r.gradient[17] = 0x7fc0; /* NaN */
        r.gradient[18] = 0x3f80; /* 1 */
        EXPECT_OK(flashoptim_set_gradient(r.optimizer, r.parameter, &gradient));
        status = flashoptim_step_parameter(r.optimizer, r.parameter, &bad, &skipped);
        EXPECT_OK(flashoptim_step_count(r.optimizer, r.parameter, &steps));
        EXPECT_OK(flashoptim_bad_elements(r.optimizer, r.parameter, &counted));
        masters(&r, after);
        EXPECT(counted == 1 && before[17] == after[17]);
        if (policy == FLASHOPTIM_NONFINITE_SKIP_ELEMENT) {
            EXPECT(status == FLASHOPTIM_OK && bad == 1 && skipped == 0 && steps == 1 &&
                   largest_distance(&before[18], &after[18], 1) > 0);
        } else if (policy == FLASHOPTIM_NONFINITE_SKIP_STEP) {
            EXPECT(status == FLASHOPTIM_OK && bad == 1 && skipped == 1 && steps == 0 &&
                   before[18] == after[18]);
        } else {
            EXPECT(status == FLASHOPTIM_NONFINITE && steps == 0 && before[18] == after[18]);
            EXPECT(strstr(flashoptim_last_error(), "layer.weight") != NULL);
        }
        flashoptim_destroy(r.optimizer);
    }
}

static void test_groups_and_hyperparameters(void) {
    float weight[4] = {1, 2, 3, 4}, gradient[4] = {1, 1, 1, 1};
    const int64_t extent[1] = {4};
    flashoptim_tensor view = FLASHOPTIM_TENSOR_INIT;
    flashoptim_hyperparameters h;
    flashoptim_optimizer* optimizer = NULL;
    size_t group = 99, parameter = 99;
    double norm = 0;
    EXPECT_OK(flashoptim_hyperparameters_init(&h, sizeof h, FLASHOPTIM_SGD));
    h.learning_rate = 0.5;
    EXPECT_OK(flashoptim_create(FLASHOPTIM_SGD, NULL, NULL, &optimizer));
    EXPECT_OK(flashoptim_add_group(optimizer, &h, &group));
    EXPECT(group == 1);
    view.data = weight;
    view.ndim = 1;
    view.shape = extent;
    EXPECT_OK(flashoptim_add_parameter(optimizer, &view, NULL, group, NULL, &parameter));
    view.data = gradient;
    EXPECT_OK(flashoptim_set_gradient(optimizer, parameter, &view));
    EXPECT_OK(flashoptim_set_gradient_factor(optimizer, 2.0));
    EXPECT_OK(flashoptim_grad_norm(optimizer, &norm));
    EXPECT(norm == 4.0);
    EXPECT_OK(flashoptim_step(optimizer, NULL, NULL));
    EXPECT(weight[0] == 0.0f && weight[3] == 3.0f);
    EXPECT_OK(flashoptim_set_learning_rate(optimizer, 0.25));
    EXPECT_OK(flashoptim_get_hyperparameters(optimizer, group, &h));
    EXPECT(h.learning_rate == 0.25);
    EXPECT_OK(flashoptim_set_group_learning_rate(optimizer, group, 1.0));
    EXPECT_OK(flashoptim_step(optimizer, NULL, NULL));
    EXPECT(weight[0] == -2.0f && weight[3] == 1.0f);
    h.maximize = 1;
    h.learning_rate = 1.0;
    EXPECT_OK(flashoptim_set_hyperparameters(optimizer, group, &h));
    EXPECT_OK(flashoptim_step(optimizer, NULL, NULL));
    EXPECT(weight[0] == 0.0f);
    h.epsilon = 1e308 * 10; /* SGD does not read it, but it would be saved */
    EXPECT(flashoptim_set_hyperparameters(optimizer, group, &h) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "epsilon") != NULL);
    h.epsilon = 0;
    h.learning_rate = -1;
    EXPECT(flashoptim_set_hyperparameters(optimizer, group, &h) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "learning_rate") != NULL);
    EXPECT(flashoptim_set_learning_rate(optimizer, -1) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT_OK(flashoptim_set_step_count(optimizer, parameter, 40));
    EXPECT(flashoptim_set_step_count(optimizer, parameter, -1) == FLASHOPTIM_INVALID_ARGUMENT);
    flashoptim_destroy(optimizer);
}

/* A loss scaler's numbers, which a step reads when it runs. */
static void test_numbers(void) {
    float weight[4] = {1, 2, 3, 4}, gradient[4] = {8, 8, 8, 8}, scale = 4, found_inf = 1;
    const int64_t extent[1] = {4};
    const double* norm = NULL;
    int32_t skipped = 0;
    int64_t steps = -1;
    flashoptim_tensor view = FLASHOPTIM_TENSOR_INIT;
    flashoptim_hyperparameters h;
    flashoptim_optimizer* optimizer = NULL;
    EXPECT_OK(flashoptim_hyperparameters_init(&h, sizeof h, FLASHOPTIM_SGD));
    h.learning_rate = 0.5;
    EXPECT_OK(flashoptim_create(FLASHOPTIM_SGD, &h, NULL, &optimizer));
    view.data = weight;
    view.ndim = 1;
    view.shape = extent;
    EXPECT_OK(flashoptim_add_parameter(optimizer, &view, NULL, 0, NULL, NULL));
    view.data = gradient;
    EXPECT_OK(flashoptim_set_gradient(optimizer, 0, &view));
    EXPECT_OK(flashoptim_set_grad_scale(optimizer, &scale));
    EXPECT_OK(flashoptim_set_found_inf(optimizer, &found_inf));
    EXPECT_OK(flashoptim_step(optimizer, NULL, &skipped));
    EXPECT_OK(flashoptim_step_count(optimizer, 0, &steps));
    EXPECT(skipped == 1 && steps == 0 && weight[0] == 1.0f);
    found_inf = 0;
    EXPECT_OK(flashoptim_step(optimizer, NULL, &skipped));
    EXPECT_OK(flashoptim_step_count(optimizer, 0, &steps));
    EXPECT(skipped == 0 && steps == 1 && weight[0] == 0.0f);
    EXPECT_OK(flashoptim_clip_grad_norm(optimizer, 2.0, &norm));
    EXPECT(norm != NULL && *norm == 4.0);
    EXPECT_OK(flashoptim_step(optimizer, NULL, NULL));
    EXPECT(weight[0] > -0.501f && weight[0] < -0.499f);
    EXPECT_OK(flashoptim_clip_grad_norm(optimizer, 2.0, NULL));
    EXPECT(flashoptim_clip_grad_norm(optimizer, -1.0, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "maximal norm") != NULL);
    EXPECT_OK(flashoptim_set_grad_scale(optimizer, NULL));
    EXPECT_OK(flashoptim_set_found_inf(optimizer, NULL));
    flashoptim_destroy(optimizer);
}

static void test_masters_and_moments(void) {
    static run r;
    static float values[COUNT], again[COUNT];
    int n;
    make_run(&r, FLASHOPTIM_LION, NULL);
    for (n = 0; n < COUNT; ++n) values[n] = 1.0f + (float)n * 0x1p-15f;
    EXPECT_OK(flashoptim_set_master(r.optimizer, r.parameter, values, COUNT));
    masters(&r, again);
    EXPECT(memcmp(values, again, sizeof values) == 0);
    EXPECT_OK(flashoptim_refresh_master(r.optimizer, r.parameter));
    EXPECT_OK(flashoptim_refresh_masters(r.optimizer));
    masters(&r, again);
    EXPECT(again[1] == 1.0f && values[1] != 1.0f); /* the correction is gone */
    EXPECT(flashoptim_copy_master(r.optimizer, r.parameter, values, 3) == FLASHOPTIM_INVALID_ARGUMENT);
    take_steps(&r, 0, 1);
    EXPECT_OK(flashoptim_copy_moment(r.optimizer, r.parameter, FLASHOPTIM_FIRST_MOMENT, values, COUNT));
    EXPECT(largest_distance(values, again, COUNT) > 0); /* numbers */
    EXPECT(flashoptim_copy_moment(r.optimizer, r.parameter, FLASHOPTIM_SECOND_MOMENT, values, COUNT) ==
           FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_copy_moment(r.optimizer, r.parameter, FLASHOPTIM_SECOND_MOMENT, values, 0) ==
           FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "no moment 1: Lion keeps exp_avg") != NULL);
    flashoptim_destroy(r.optimizer);
}

/* Two shards of a tensor step to the same bits as the whole. */
static void test_shards(void) {
    static run whole;
    static uint16_t halves[COUNT];
    const int64_t half_shape[2] = {ROWS / 2, COLUMNS};
    int64_t offset[2] = {0, 0};
    flashoptim_optimizer* optimizer = NULL;
    int n, half;
    make_run(&whole, FLASHOPTIM_ADAMW, NULL);
    memcpy(halves, whole.weight, sizeof halves);
    EXPECT_OK(flashoptim_create(FLASHOPTIM_ADAMW, NULL, NULL, &optimizer));
    for (half = 0; half < 2; ++half) {
        flashoptim_tensor view = tensor_of(halves + half * COUNT / 2, FLASHOPTIM_BFLOAT16);
        flashoptim_shard shard = FLASHOPTIM_SHARD_INIT;
        view.shape = half_shape;
        shard.whole_shape = shape;
        shard.whole_strides = NULL;
        shard.offset = offset;
        offset[0] = half * ROWS / 2;
        EXPECT_OK(flashoptim_add_parameter(optimizer, &view, NULL, 0, &shard, NULL));
    }
    take_steps(&whole, 0, 3);
    for (n = 0; n < 3; ++n) {
        unsigned e;
        for (e = 0; e < COUNT; ++e) whole.gradient[e] = bfloat16_of(noise(e + 7919u * (unsigned)n));
        for (half = 0; half < 2; ++half) {
            flashoptim_tensor view = tensor_of(whole.gradient + half * COUNT / 2, FLASHOPTIM_BFLOAT16);
            view.shape = half_shape;
            EXPECT_OK(flashoptim_set_gradient(optimizer, (size_t)half, &view));
        }
        EXPECT_OK(flashoptim_step(optimizer, NULL, NULL));
    }
    EXPECT(memcmp(halves, whole.weight, sizeof halves) == 0);
    flashoptim_destroy(optimizer);
    flashoptim_destroy(whole.optimizer);
}

static void test_formats_alone(void) {
    static float values[COUNT], decoded[COUNT], masters_again[COUNT];
    static int8_t codes[COUNT];
    static uint16_t scales[COUNT], weights[COUNT];
    static int16_t corrections[COUNT];
    flashoptim_tensor view = tensor_of(values, FLASHOPTIM_FLOAT32);
    flashoptim_tensor back = tensor_of(decoded, FLASHOPTIM_FLOAT32);
    int32_t format;
    size_t count = 0;
    int n;
    for (n = 0; n < COUNT; ++n) values[n] = noise((unsigned)n);
    for (format = FLASHOPTIM_FORMAT_NATIVE; format <= FLASHOPTIM_FORMAT_PAPER; ++format) {
        EXPECT_OK(flashoptim_scale_count(format, &view, &count));
        EXPECT(count == COUNT / 32);
        EXPECT_OK(flashoptim_quantize_moment(format, FLASHOPTIM_FIRST_MOMENT, &view, codes, scales, count));
        EXPECT_OK(flashoptim_dequantize_moment(format, FLASHOPTIM_FIRST_MOMENT, codes, scales, count, &back));
        /* Half a step of the square law at the largest is 1/127 of it; a scale is
           at most 1.11 of the largest. */
        EXPECT(largest_distance(decoded, values, COUNT) <= 0.012);
    }
    EXPECT(flashoptim_scale_count(FLASHOPTIM_FORMAT_FLOAT32, &view, &count) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_quantize_moment(FLASHOPTIM_FORMAT_NATIVE, FLASHOPTIM_SECOND_MOMENT, &view, codes,
                                      scales,
                                      COUNT / 32) == FLASHOPTIM_INVALID_ARGUMENT); /* v is not negative */
    EXPECT(flashoptim_quantize_moment(FLASHOPTIM_FORMAT_NATIVE, FLASHOPTIM_FIRST_MOMENT, &view, codes, scales,
                                      1) == FLASHOPTIM_INVALID_ARGUMENT);

    EXPECT_OK(flashoptim_split_weights(FLASHOPTIM_FORMAT_NATIVE, FLASHOPTIM_BFLOAT16, 32, COUNT, values,
                                       weights, corrections));
    EXPECT_OK(flashoptim_join_weights(FLASHOPTIM_FORMAT_NATIVE, FLASHOPTIM_BFLOAT16, 32, COUNT, weights,
                                      corrections, masters_again));
    EXPECT(memcmp(values, masters_again, sizeof values) == 0); /* 32-bit masters are exact */
    EXPECT(flashoptim_split_weights(FLASHOPTIM_FORMAT_NATIVE, FLASHOPTIM_BFLOAT16, 20, COUNT, values, weights,
                                    corrections) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_split_weights(FLASHOPTIM_FORMAT_NATIVE, FLASHOPTIM_BFLOAT16, 24, COUNT, values, weights,
                                    NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT_OK(
        flashoptim_split_weights(FLASHOPTIM_FORMAT_NATIVE, FLASHOPTIM_BFLOAT16, 24, 0, NULL, NULL, NULL));
}

/* Wrong arguments are refused with a status and a line of text; nothing crashes. */
static void test_refusals(void) {
    static run r;
    flashoptim_tensor view = tensor_of(r.weight, FLASHOPTIM_BFLOAT16);
    const int64_t strides[2] = {COLUMNS * 2, 2};
    flashoptim_options options;
    flashoptim_hyperparameters h;
    flashoptim_optimizer* none = NULL;
    EXPECT(flashoptim_create(99, NULL, NULL, &none) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "99") != NULL);
    EXPECT(flashoptim_create(FLASHOPTIM_SGD, NULL, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_options_init(NULL, sizeof options) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT_OK(flashoptim_options_init(&options, sizeof options));
    options.size = 0;
    EXPECT(flashoptim_create(FLASHOPTIM_SGD, NULL, &options, &none) == FLASHOPTIM_INVALID_ARGUMENT);
    options.size = sizeof options;
    options.format = 7;
    EXPECT(flashoptim_create(FLASHOPTIM_SGD, NULL, &options, &none) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT_OK(flashoptim_hyperparameters_init(&h, sizeof h, FLASHOPTIM_ADAM));
    h.beta1 = 1.0;
    EXPECT(flashoptim_create(FLASHOPTIM_ADAM, &h, NULL, &none) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "beta1") != NULL);
    EXPECT(none == NULL);

    make_run(&r, FLASHOPTIM_SGD, NULL);
    EXPECT(flashoptim_add_parameter(r.optimizer, &view, "again", 0, NULL, NULL) ==
           FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "overlaps") != NULL);
    view.strides = strides;
    EXPECT(flashoptim_add_parameter(r.optimizer, &view, "holes", 0, NULL, NULL) ==
           FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(strstr(flashoptim_last_error(), "holes") != NULL);
    view.strides = NULL;
    view.ndim = -1;
    EXPECT(flashoptim_add_parameter(r.optimizer, &view, NULL, 0, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    view.ndim = 2;
    view.shape = NULL;
    EXPECT(flashoptim_add_parameter(r.optimizer, &view, NULL, 0, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    view.shape = shape;
    view.dtype = 5;
    EXPECT(flashoptim_set_gradient(r.optimizer, 0, &view) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_set_gradient(r.optimizer, 1, &view) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_set_gradient(r.optimizer, 0, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_step_parameter(r.optimizer, 0, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_step(NULL, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_save(r.optimizer, NULL, 1) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT(flashoptim_set_gradient_factor(r.optimizer, 1e308 * 10) == FLASHOPTIM_INVALID_ARGUMENT);
    EXPECT_OK(flashoptim_step(r.optimizer, NULL, NULL)); /* no gradient is set: nothing to do */
    flashoptim_destroy(r.optimizer);
}

static void* error_of_another_thread(void* name) {
    EXPECT(strcmp(flashoptim_last_error(), "") == 0);
    EXPECT(flashoptim_create(1234, NULL, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    return name;
}

/* Without a GPU, or in a build without CUDA, a program learns in one line why it cannot have a device. */
static void test_device_that_is_not_there(void) {
    flashoptim_options options;
    flashoptim_optimizer* none = NULL;
    if (flashoptim_cuda_device_count() != 0) return;
    EXPECT_OK(flashoptim_options_init(&options, sizeof options));
    options.place = FLASHOPTIM_CUDA;
    EXPECT(flashoptim_create(FLASHOPTIM_ADAMW, NULL, &options, &none) != FLASHOPTIM_OK);
    EXPECT(strstr(flashoptim_last_error(), "this build has no CUDA backend: configure it") != NULL ||
           strstr(flashoptim_last_error(), "CUDA device 0 does not exist") != NULL);
    EXPECT(none == NULL);
}

/* Errors of one thread are not seen by another. */
static void test_errors_belong_to_their_thread(void) {
    char before[1024];
    pthread_t other;
    EXPECT(flashoptim_create(4321, NULL, NULL, NULL) == FLASHOPTIM_INVALID_ARGUMENT);
    strncpy(before, flashoptim_last_error(), sizeof before - 1);
    before[sizeof before - 1] = '\0';
    EXPECT(pthread_create(&other, NULL, error_of_another_thread, NULL) == 0);
    EXPECT(pthread_join(other, NULL) == 0);
    EXPECT(strcmp(before, flashoptim_last_error()) == 0);
}

int main(int argc, char** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: c_api_test FOLDER\n");
        return 2;
    }
    test_versions();
    test_errors_belong_to_their_thread();
    test_all_rules_step();
    test_memory_report();
    test_save_and_load(argv[1]);
    test_nonfinite_policies();
    test_groups_and_hyperparameters();
    test_numbers();
    test_masters_and_moments();
    test_shards();
    test_formats_alone();
    test_refusals();
    test_device_that_is_not_there();
    if (failures != 0) fprintf(stderr, "%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
