/* Every function of c_api.h in one table, with good arguments for each: tests of all functions go through it.
   test_c_api_header.py sees that none is left out. */
#pragma once

#include <flashoptim/c_api.h>
#include <string.h>

#include "support.h"

enum { SCALES_OF_COUNT = COUNT / 32 };

/* One good value of every kind of argument; a test spoils one of them at a time. */
typedef struct arguments {
    flashoptim_optimizer* optimizer;
    flashoptim_optimizer** made;
    flashoptim_options* options;
    flashoptim_hyperparameters* hyperparameters;
    flashoptim_tensor* tensor; /* what a function reads: a gradient, fp32 values, or a weight of its own */
    flashoptim_shard* shard;
    flashoptim_memory* memory;
    const char* text; /* a name or folder */
    const float *floats, *number_in;
    float* values;
    void *codes, *weights, *corrections;
    uint16_t* scales;
    size_t count, scale_count, group, parameter, struct_size;
    int32_t rule, format, dtype, moment, bits, weights_too, convert;
    int64_t steps;
    double number;
    size_t* size_out;
    int64_t* int64_out;
    uint64_t* uint64_out;
    int32_t* int32_out;
    double* double_out;
    const double** pointer_out;
} arguments;

typedef flashoptim_status (*function_call)(const arguments* a);

/* Calls that are not in the table, as they cannot be given a wrong argument: flashoptim_abi_version(),
   flashoptim_version(), flashoptim_last_error(), flashoptim_cuda_device_count(), flashoptim_rule_name(),
   flashoptim_moment_name(). */
static flashoptim_status call_options_init(const arguments* a) {
    return flashoptim_options_init(a->options, a->struct_size);
}
static flashoptim_status call_hyperparameters_init(const arguments* a) {
    return flashoptim_hyperparameters_init(a->hyperparameters, a->struct_size, a->rule);
}
static flashoptim_status call_create(const arguments* a) {
    return flashoptim_create(a->rule, a->hyperparameters, a->options, a->made);
}
static flashoptim_status call_destroy(const arguments* a) { return flashoptim_destroy(a->optimizer); }
static flashoptim_status call_set_stream(const arguments* a) {
    return flashoptim_set_stream(a->optimizer, FLASHOPTIM_DEFAULT_STREAM);
}
static flashoptim_status call_add_group(const arguments* a) {
    return flashoptim_add_group(a->optimizer, a->hyperparameters, a->size_out);
}
static flashoptim_status call_add_parameter(const arguments* a) {
    return flashoptim_add_parameter(a->optimizer, a->tensor, a->text, a->group, a->shard, a->size_out);
}
static flashoptim_status call_parameter_count(const arguments* a) {
    return flashoptim_parameter_count(a->optimizer, a->size_out);
}
static flashoptim_status call_get_hyperparameters(const arguments* a) {
    return flashoptim_get_hyperparameters(a->optimizer, a->group, a->hyperparameters);
}
static flashoptim_status call_set_hyperparameters(const arguments* a) {
    return flashoptim_set_hyperparameters(a->optimizer, a->group, a->hyperparameters);
}
static flashoptim_status call_set_learning_rate(const arguments* a) {
    return flashoptim_set_learning_rate(a->optimizer, a->number);
}
static flashoptim_status call_set_group_learning_rate(const arguments* a) {
    return flashoptim_set_group_learning_rate(a->optimizer, a->group, a->number);
}
static flashoptim_status call_set_gradient(const arguments* a) {
    return flashoptim_set_gradient(a->optimizer, a->parameter, a->tensor);
}
static flashoptim_status call_clear_gradient(const arguments* a) {
    return flashoptim_clear_gradient(a->optimizer, a->parameter);
}
static flashoptim_status call_set_gradient_factor(const arguments* a) {
    return flashoptim_set_gradient_factor(a->optimizer, a->number);
}
static flashoptim_status call_set_grad_scale(const arguments* a) {
    return flashoptim_set_grad_scale(a->optimizer, a->number_in);
}
static flashoptim_status call_set_found_inf(const arguments* a) {
    return flashoptim_set_found_inf(a->optimizer, a->number_in);
}
static flashoptim_status call_grad_norm(const arguments* a) {
    return flashoptim_grad_norm(a->optimizer, a->double_out);
}
static flashoptim_status call_clip_grad_norm(const arguments* a) {
    return flashoptim_clip_grad_norm(a->optimizer, a->number, a->pointer_out);
}
static flashoptim_status call_step(const arguments* a) {
    return flashoptim_step(a->optimizer, a->uint64_out, a->int32_out);
}
static flashoptim_status call_step_parameter(const arguments* a) {
    return flashoptim_step_parameter(a->optimizer, a->parameter, a->uint64_out, a->int32_out);
}
static flashoptim_status call_step_count(const arguments* a) {
    return flashoptim_step_count(a->optimizer, a->parameter, a->int64_out);
}
static flashoptim_status call_set_step_count(const arguments* a) {
    return flashoptim_set_step_count(a->optimizer, a->parameter, a->steps);
}
static flashoptim_status call_bad_elements(const arguments* a) {
    return flashoptim_bad_elements(a->optimizer, a->parameter, a->uint64_out);
}
static flashoptim_status call_copy_master(const arguments* a) {
    return flashoptim_copy_master(a->optimizer, a->parameter, a->values, a->count);
}
static flashoptim_status call_set_master(const arguments* a) {
    return flashoptim_set_master(a->optimizer, a->parameter, a->floats, a->count);
}
static flashoptim_status call_refresh_master(const arguments* a) {
    return flashoptim_refresh_master(a->optimizer, a->parameter);
}
static flashoptim_status call_refresh_masters(const arguments* a) {
    return flashoptim_refresh_masters(a->optimizer);
}
static flashoptim_status call_copy_moment(const arguments* a) {
    return flashoptim_copy_moment(a->optimizer, a->parameter, a->moment, a->values, a->count);
}
static flashoptim_status call_save(const arguments* a) {
    return flashoptim_save(a->optimizer, a->text, a->weights_too);
}
static flashoptim_status call_load(const arguments* a) {
    return flashoptim_load(a->optimizer, a->text, a->weights_too, a->convert, a->size_out);
}
static flashoptim_status call_memory_report(const arguments* a) {
    return flashoptim_memory_report(a->optimizer, a->memory);
}
static flashoptim_status call_scale_count(const arguments* a) {
    return flashoptim_scale_count(a->format, a->tensor, a->size_out);
}
static flashoptim_status call_quantize_moment(const arguments* a) {
    return flashoptim_quantize_moment(a->format, a->moment, a->tensor, a->codes, a->scales, a->scale_count);
}
static flashoptim_status call_dequantize_moment(const arguments* a) {
    return flashoptim_dequantize_moment(a->format, a->moment, a->codes, a->scales, a->scale_count, a->tensor);
}
static flashoptim_status call_split_weights(const arguments* a) {
    return flashoptim_split_weights(a->format, a->dtype, a->bits, a->count, a->floats, a->weights,
                                    a->corrections);
}
static flashoptim_status call_join_weights(const arguments* a) {
    return flashoptim_join_weights(a->format, a->dtype, a->bits, a->count, a->weights, a->corrections,
                                   a->values);
}

/* Which arguments a function has. */
enum {
    HANDLE = 1 << 0,
    MADE = 1 << 1,
    OPTIONS = 1 << 2,
    RATES = 1 << 3,
    TENSOR = 1 << 4,
    SHARD = 1 << 5,
    MEMORY = 1 << 6,
    FOLDER = 1 << 7,
    NAME = 1 << 8,
    FLOATS = 1 << 9,
    VALUES = 1 << 10,
    CODES = 1 << 11,
    WEIGHTS = 1 << 12,
    SCALES = 1 << 13,
    NUMBER = 1 << 14, /* a float that a step reads */
    GROUP = 1 << 15,
    PARAMETER = 1 << 16,
    SIZE = 1 << 17,
    RULE = 1 << 18,
    FORMAT = 1 << 19,
    MOMENT = 1 << 20,
    YES = 1 << 21,
    STEPS = 1 << 22,
    RATE = 1 << 23,
    FACTOR = 1 << 24,
    SIZE_OUT = 1 << 25,
    INT64_OUT = 1 << 26,
    UINT64_OUT = 1 << 27,
    DOUBLE_OUT = 1 << 28,
    GRADIENT = 1 << 29, /* TENSOR is one */
    INIT = 1 << 30      /* fills its struct, whose fields it does not read */
};
typedef struct function {
    const char* name;
    function_call call;
    int has;
    flashoptim_status good; /* what it returns for good arguments on the host */
} function;
#define ENTRY(name, has) {"flashoptim_" #name, call_##name, (has), FLASHOPTIM_OK}
static const function functions[] = {
    ENTRY(options_init, OPTIONS | SIZE | INIT),
    ENTRY(hyperparameters_init, RATES | SIZE | RULE | INIT),
    ENTRY(create, RULE | RATES | OPTIONS | MADE),
    ENTRY(destroy, HANDLE),
    {"flashoptim_set_stream", call_set_stream, HANDLE, FLASHOPTIM_INVALID_ARGUMENT},
    ENTRY(add_group, HANDLE | RATES | SIZE_OUT),
    ENTRY(add_parameter, HANDLE | TENSOR | NAME | GROUP | SHARD | SIZE_OUT),
    ENTRY(parameter_count, HANDLE | SIZE_OUT),
    ENTRY(get_hyperparameters, HANDLE | GROUP | RATES | INIT),
    ENTRY(set_hyperparameters, HANDLE | GROUP | RATES),
    ENTRY(set_learning_rate, HANDLE | RATE),
    ENTRY(set_group_learning_rate, HANDLE | GROUP | RATE),
    ENTRY(set_gradient, HANDLE | PARAMETER | TENSOR | GRADIENT),
    ENTRY(clear_gradient, HANDLE | PARAMETER),
    ENTRY(set_gradient_factor, HANDLE | FACTOR),
    ENTRY(set_grad_scale, HANDLE | NUMBER),
    ENTRY(set_found_inf, HANDLE | NUMBER),
    ENTRY(grad_norm, HANDLE | DOUBLE_OUT),
    ENTRY(clip_grad_norm, HANDLE | RATE),
    ENTRY(step, HANDLE | UINT64_OUT),
    ENTRY(step_parameter, HANDLE | PARAMETER | UINT64_OUT),
    ENTRY(step_count, HANDLE | PARAMETER | INT64_OUT),
    ENTRY(set_step_count, HANDLE | PARAMETER | STEPS),
    ENTRY(bad_elements, HANDLE | PARAMETER | UINT64_OUT),
    ENTRY(copy_master, HANDLE | PARAMETER | VALUES),
    ENTRY(set_master, HANDLE | PARAMETER | FLOATS),
    ENTRY(refresh_master, HANDLE | PARAMETER),
    ENTRY(refresh_masters, HANDLE),
    ENTRY(copy_moment, HANDLE | PARAMETER | MOMENT | VALUES),
    ENTRY(save, HANDLE | FOLDER | YES),
    ENTRY(load, HANDLE | FOLDER | YES | SIZE_OUT),
    ENTRY(memory_report, HANDLE | MEMORY),
    ENTRY(scale_count, FORMAT | TENSOR | SIZE_OUT),
    ENTRY(quantize_moment, FORMAT | MOMENT | TENSOR | CODES | SCALES),
    ENTRY(dequantize_moment, FORMAT | MOMENT | TENSOR | CODES | SCALES),
    ENTRY(split_weights, FORMAT | WEIGHTS | FLOATS),
    ENTRY(join_weights, FORMAT | WEIGHTS | VALUES),
};
enum { FUNCTIONS = sizeof functions / sizeof functions[0] };

/* An optimizer that has stepped once, and all memory that good arguments point to. */
typedef struct subject {
    float weight[COUNT], gradient[COUNT], floats[COUNT], values[COUNT];
    float number;
    uint16_t halves[COUNT], scales[SCALES_OF_COUNT];
    int8_t codes[COUNT];
    int64_t offset[2];
    flashoptim_optimizer* made;
    flashoptim_options options;
    flashoptim_hyperparameters hyperparameters;
    flashoptim_tensor tensor;
    flashoptim_shard shard;
    flashoptim_memory memory;
    size_t size_out;
    int64_t int64_out;
    uint64_t uint64_out;
    int32_t int32_out;
    double double_out;
    const double* pointer_out;
    arguments with;
} subject;

static void describe(flashoptim_tensor* tensor, float* data) {
    const flashoptim_tensor empty = FLASHOPTIM_TENSOR_INIT;
    *tensor = empty;
    tensor->data = data;
    tensor->ndim = 2;
    tensor->shape = shape;
}

/* `folder` holds what flashoptim_save wrote of such an optimizer; or will. */
static void make_subject(subject* s, const function* f, const char* folder) {
    const flashoptim_shard shard = FLASHOPTIM_SHARD_INIT;
    const flashoptim_memory memory = FLASHOPTIM_MEMORY_INIT;
    arguments* a = &s->with;
    int n;
    memset(s, 0, sizeof *s);
    for (n = 0; n < COUNT; ++n) {
        s->weight[n] = (float)(n % 61) * 0.25f;
        s->gradient[n] = s->floats[n] = (float)(n % 31 + 1) * 0.125f;
    }
    s->number = 1;
    s->shard = shard;
    s->shard.whole_shape = shape;
    s->shard.offset = s->offset;
    s->memory = memory;
    EXPECT_OK(flashoptim_options_init(&s->options, sizeof s->options));
    EXPECT_OK(
        flashoptim_hyperparameters_init(&s->hyperparameters, sizeof s->hyperparameters, FLASHOPTIM_ADAMW));
    s->options.threads = 1;
    s->options.min_quantized_numel = 0;
    EXPECT_OK(flashoptim_create(FLASHOPTIM_ADAMW, NULL, &s->options, &a->optimizer));
    describe(&s->tensor, s->weight);
    EXPECT_OK(flashoptim_add_parameter(a->optimizer, &s->tensor, "layer.weight", 0, NULL, NULL));
    s->tensor.data = s->gradient;
    EXPECT_OK(flashoptim_set_gradient(a->optimizer, 0, &s->tensor));
    EXPECT_OK(flashoptim_step(a->optimizer, NULL, NULL));
    s->tensor.data = s->floats;
    a->made = &s->made;
    a->options = &s->options;
    a->hyperparameters = &s->hyperparameters;
    a->tensor = &s->tensor;
    a->shard = &s->shard;
    a->memory = &s->memory;
    a->text = f->has & FOLDER ? folder : "another.weight";
    a->floats = s->floats;
    a->number_in = &s->number;
    a->values = s->values;
    a->codes = s->codes;
    a->weights = s->halves;
    a->corrections = s->codes;
    a->scales = s->scales;
    a->count = COUNT;
    a->scale_count = SCALES_OF_COUNT;
    a->struct_size = f->has & OPTIONS ? sizeof s->options : sizeof s->hyperparameters;
    a->rule = FLASHOPTIM_ADAMW;
    a->format = FLASHOPTIM_FORMAT_NATIVE;
    a->dtype = FLASHOPTIM_BFLOAT16;
    a->moment = FLASHOPTIM_FIRST_MOMENT;
    a->bits = FLASHOPTIM_MASTER_24_BITS;
    a->weights_too = a->convert = 1;
    a->steps = 7;
    a->number = 0.5;
    a->size_out = &s->size_out;
    a->int64_out = &s->int64_out;
    a->uint64_out = &s->uint64_out;
    a->int32_out = &s->int32_out;
    a->double_out = &s->double_out;
    a->pointer_out = &s->pointer_out;
}

/* What a call that fails must leave alone. */
typedef struct contents {
    float weight[COUNT], master[COUNT], first[COUNT], second[COUNT];
    int64_t steps;
    size_t parameters;
    double norm;
    flashoptim_hyperparameters hyperparameters;
    flashoptim_memory memory;
} contents;

static void read_contents(const subject* s, flashoptim_optimizer* optimizer, contents* c) {
    const flashoptim_memory memory = FLASHOPTIM_MEMORY_INIT;
    memset(c, 0, sizeof *c);
    c->memory = memory;
    c->hyperparameters.size = sizeof c->hyperparameters;
    memcpy(c->weight, s->weight, sizeof c->weight);
    EXPECT_OK(flashoptim_copy_master(optimizer, 0, c->master, COUNT));
    EXPECT_OK(flashoptim_copy_moment(optimizer, 0, FLASHOPTIM_FIRST_MOMENT, c->first, COUNT));
    EXPECT_OK(flashoptim_copy_moment(optimizer, 0, FLASHOPTIM_SECOND_MOMENT, c->second, COUNT));
    EXPECT_OK(flashoptim_step_count(optimizer, 0, &c->steps));
    EXPECT_OK(flashoptim_parameter_count(optimizer, &c->parameters));
    EXPECT_OK(flashoptim_grad_norm(optimizer, &c->norm));
    EXPECT_OK(flashoptim_get_hyperparameters(optimizer, 0, &c->hyperparameters));
    EXPECT_OK(flashoptim_memory_report(optimizer, &c->memory));
    EXPECT(largest_distance(c->master, c->first, COUNT) >= 0 &&
           largest_distance(c->second, c->first, COUNT) >= 0); /* numbers */
}
