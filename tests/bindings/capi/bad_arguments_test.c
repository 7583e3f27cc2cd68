/* Every function of c_api.h with every argument that it cannot take: NULL, handles that are dead or
   none, addresses that are not aligned, numbers, sizes and texts out of range. Each must be refused
   with one line of text and change nothing; if not, a slip in a binding is a crash, or wrong weights.
   Usage: bad_arguments_test FOLDER. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "every_function.h"

static char saved[3072], too_long[FLASHOPTIM_MAX_TEXT_BYTES + 1];
static const int64_t huge_shape[2] = {INT64_MAX, INT64_MAX}, long_shape[2] = {INT64_MAX, 1},
                     negative_shape[2] = {-1, COLUMNS};
static const int64_t many[FLASHOPTIM_MAX_DIMENSIONS + 1] = {0};
static const int64_t far_strides[2] = {INT64_MAX, 1}, farther_strides[2] = {INT64_MIN, INT64_MIN},
                     spread_strides[2] = {2 * COLUMNS, 2};
static flashoptim_optimizer* dead = NULL;

#define ODD(pointer) ((void*)((char*)(pointer) + 1))

/* Spoils the n-th thing that can be wrong with an argument. */
typedef enum outcome { SPOILED, NOT_HIS, NO_MORE } outcome;
#define FAULT(kinds, statement)                      \
    if (n-- == 0) {                                  \
        if ((f->has & (kinds)) == 0) return NOT_HIS; \
        *what = #statement;                          \
        statement;                                   \
        return SPOILED;                              \
    }
#define FAULT_UNLESS(unwanted, kinds, statement)              \
    if (n == 0 && (f->has & (unwanted)) != 0) return NOT_HIS; \
    FAULT(kinds, statement)

static outcome spoil(int n, const function* f, subject* s, const char** what) {
    static char on_stack_of_nobody[64];
    arguments* a = &s->with;
    const int is_scale_count = f->call == call_scale_count; /* asks for a shape alone */
    const int reads_data = is_scale_count ? 0 : TENSOR;
    FAULT(f->call == call_destroy ? 0 : HANDLE, a->optimizer = NULL)
    FAULT(HANDLE, a->optimizer = dead)
    FAULT(HANDLE, a->optimizer = (flashoptim_optimizer*)(void*)on_stack_of_nobody)
    FAULT(HANDLE, a->optimizer = (flashoptim_optimizer*)(void*)s)
    FAULT(HANDLE, a->optimizer = (flashoptim_optimizer*)ODD(s))
    FAULT(HANDLE, a->optimizer = (flashoptim_optimizer*)ODD(NULL))
    FAULT(HANDLE, a->optimizer = (flashoptim_optimizer*)UINTPTR_MAX)
    FAULT(HANDLE, a->optimizer = (flashoptim_optimizer*)((uintptr_t)a->optimizer ^ 2u))
    FAULT(HANDLE, a->optimizer = (flashoptim_optimizer*)((uintptr_t)a->optimizer ^ 1u))
    FAULT(MADE, a->made = NULL)
    FAULT(MADE, a->made = (flashoptim_optimizer**)ODD(a->made))
    FAULT(f->has & INIT ? OPTIONS : 0, a->options = NULL)
    FAULT(OPTIONS, a->options = (flashoptim_options*)ODD(a->options))
    FAULT(SIZE, a->struct_size = 0)
    FAULT(SIZE, a->struct_size = 1)
    FAULT(SIZE, a->struct_size -= 1)
    FAULT(SIZE, a->struct_size = FLASHOPTIM_MAX_STRUCT_SIZE + 1)
    FAULT(SIZE, a->struct_size = SIZE_MAX)
    FAULT_UNLESS(INIT, OPTIONS, a->options->size = 0)
    FAULT_UNLESS(INIT, OPTIONS, a->options->size = sizeof(size_t))
    FAULT_UNLESS(INIT, OPTIONS, a->options->size -= 1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->size = FLASHOPTIM_MAX_STRUCT_SIZE + 8)
    FAULT_UNLESS(INIT, OPTIONS, a->options->size = SIZE_MAX)
    FAULT_UNLESS(INIT, OPTIONS, a->options->format = -1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->format = FLASHOPTIM_FORMAT_FLOAT32 + 1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->master_weight_bits = 20)
    FAULT_UNLESS(INIT, OPTIONS, a->options->master_weight_bits = -1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->master_weight_bits = INT32_MAX)
    FAULT_UNLESS(INIT, OPTIONS, a->options->quantize = 2)
    FAULT_UNLESS(INIT, OPTIONS, a->options->nonfinite = -1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->nonfinite = FLASHOPTIM_NONFINITE_ERROR + 1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->check_gradients = -1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->threads = -1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->threads = INT32_MIN)
    FAULT_UNLESS(INIT, OPTIONS, a->options->backend = -1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->backend = FLASHOPTIM_BACKEND_NEON + 1)
#if defined(__x86_64__) || defined(__i386__)
    FAULT_UNLESS(INIT, OPTIONS, a->options->backend = FLASHOPTIM_BACKEND_NEON)
#else
    FAULT_UNLESS(INIT, OPTIONS, a->options->backend = FLASHOPTIM_BACKEND_AVX2)
#endif
    FAULT_UNLESS(INIT, OPTIONS, a->options->reserved = 1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->min_quantized_numel = -1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->min_quantized_numel_1d = INT64_MIN)
    FAULT_UNLESS(INIT, OPTIONS, a->options->place = FLASHOPTIM_CUDA + 1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->device = 1)
    FAULT_UNLESS(INIT, OPTIONS, a->options->stream = s)
    FAULT_UNLESS(MADE, RATES, a->hyperparameters = NULL)
    FAULT(RATES, a->hyperparameters = (flashoptim_hyperparameters*)ODD(a->hyperparameters))
    FAULT_UNLESS(SIZE, RATES, a->hyperparameters->size = 0)
    FAULT_UNLESS(SIZE, RATES, a->hyperparameters->size -= 8)
    FAULT_UNLESS(SIZE, RATES, a->hyperparameters->size -= 4)
    FAULT_UNLESS(SIZE, RATES, a->hyperparameters->size = SIZE_MAX)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->learning_rate = -1)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->learning_rate = NAN)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->learning_rate = INFINITY)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->beta1 = 1)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->beta1 = -0.1)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->beta2 = NAN)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->beta2 = 2)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->epsilon = -1)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->epsilon = INFINITY)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->weight_decay = NAN)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->momentum = INFINITY)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->dampening = NAN)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->initial_learning_rate = -1)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->nesterov = 2)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->maximize = -1)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->fully_decoupled = INT32_MIN)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->reserved = 1)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->no_prox = 2)
    FAULT_UNLESS(INIT, RATES, a->hyperparameters->reserved2 = INT32_MIN)
    FAULT(TENSOR, a->tensor = NULL)
    FAULT(TENSOR, a->tensor = (flashoptim_tensor*)ODD(a->tensor))
    FAULT(TENSOR, a->tensor->size = 0)
    FAULT(TENSOR, a->tensor->size = 1)
    FAULT(TENSOR, a->tensor->size = (size_t)(uintptr_t)s)
    FAULT(reads_data, a->tensor->data = NULL)
    FAULT(reads_data, a->tensor->data = ODD(a->tensor->data))
    FAULT(TENSOR, a->tensor->dtype = -1)
    FAULT(TENSOR, a->tensor->dtype = FLASHOPTIM_FLOAT16 + 1)
    FAULT(TENSOR, a->tensor->ndim = -1)
    FAULT(TENSOR, (a->tensor->ndim = FLASHOPTIM_MAX_DIMENSIONS + 1, a->tensor->shape = many))
    FAULT(TENSOR, a->tensor->ndim = INT32_MAX)
    FAULT(TENSOR, a->tensor->shape = NULL)
    FAULT(TENSOR, a->tensor->shape = (const int64_t*)ODD(shape))
    FAULT(TENSOR, a->tensor->shape = huge_shape)
    FAULT(TENSOR, a->tensor->shape = negative_shape)
    FAULT_UNLESS(FORMAT, TENSOR, a->tensor->shape = long_shape)
    FAULT(TENSOR, a->tensor->strides = (const int64_t*)ODD(shape))
    FAULT(TENSOR, a->tensor->strides = far_strides)
    FAULT(TENSOR, a->tensor->strides = farther_strides)
    FAULT_UNLESS(GRADIENT, TENSOR, a->tensor->strides = spread_strides)
    FAULT(GRADIENT, a->tensor->data = s->weight)
    FAULT(GRADIENT, a->tensor->data = s->weight + COUNT - 1)
    FAULT(SHARD, a->shard = (flashoptim_shard*)ODD(a->shard))
    FAULT(SHARD, a->shard->size = 0)
    FAULT(SHARD, a->shard->size = SIZE_MAX)
    FAULT(SHARD, a->shard->whole_shape = NULL)
    FAULT(SHARD, a->shard->whole_shape = (const int64_t*)ODD(shape))
    FAULT(SHARD, a->shard->whole_shape = huge_shape)
    FAULT(SHARD, a->shard->whole_shape = negative_shape)
    FAULT(SHARD, a->shard->offset = NULL)
    FAULT(SHARD, a->shard->offset = long_shape)
    FAULT(SHARD, a->shard->offset = negative_shape)
    FAULT(MEMORY, a->memory = NULL)
    FAULT(MEMORY, a->memory = (flashoptim_memory*)ODD(a->memory))
    FAULT(MEMORY, a->memory->size = 0)
    FAULT(MEMORY, a->memory->size = 8)
    FAULT(MEMORY, a->memory->size = SIZE_MAX)
    FAULT(FOLDER, a->text = NULL)
    FAULT(FOLDER, a->text = "")
    FAULT(FOLDER | NAME, a->text = too_long)
    FAULT(FOLDER | NAME, a->text = "a\xff")
    FAULT(FOLDER | NAME, a->text = "cut \xe2\x82")
    FAULT(FOLDER | NAME, a->text = "overlong \xc0\xaf")
    FAULT(FOLDER | NAME, a->text = "overlong \xe0\x80\xaf")
    FAULT(FOLDER | NAME, a->text = "surrogate \xed\xa0\x80")
    FAULT(FOLDER | NAME, a->text = "beyond \xf4\x90\x80\x80")
    FAULT(FLOATS, a->floats = NULL)
    FAULT(FLOATS, a->floats = (const float*)ODD(a->floats))
    FAULT(VALUES, a->values = NULL)
    FAULT(VALUES, a->values = (float*)ODD(a->values))
    FAULT_UNLESS(WEIGHTS, FLOATS | VALUES, a->count -= 1)
    FAULT_UNLESS(WEIGHTS, FLOATS | VALUES, a->count = 0)
    FAULT(FLOATS | VALUES, a->count = SIZE_MAX)
    FAULT(FLOATS | VALUES, a->count = SIZE_MAX / 2)
    FAULT(FLOATS | VALUES, a->count = SIZE_MAX / 4)
    FAULT(CODES, a->codes = NULL)
    FAULT(SCALES, a->scales = NULL)
    FAULT(SCALES, a->scales = (uint16_t*)ODD(a->scales))
    FAULT(SCALES, a->scale_count -= 1)
    FAULT(SCALES, a->scale_count = SIZE_MAX)
    FAULT(WEIGHTS, a->weights = NULL)
    FAULT(WEIGHTS, a->weights = ODD(a->weights))
    FAULT(WEIGHTS, a->corrections = NULL)
    FAULT(WEIGHTS, (a->bits = FLASHOPTIM_MASTER_32_BITS, a->corrections = ODD(s->halves)))
    FAULT(WEIGHTS, a->dtype = -1)
    FAULT(WEIGHTS, a->dtype = FLASHOPTIM_FLOAT16 + 1)
    FAULT(WEIGHTS, a->bits = 23)
    FAULT(NUMBER, a->number_in = (const float*)ODD(a->number_in))
    FAULT(GROUP, a->group = 1)
    FAULT(GROUP, a->group = SIZE_MAX)
    FAULT(PARAMETER, a->parameter = 1)
    FAULT(PARAMETER, a->parameter = SIZE_MAX)
    FAULT(RULE, a->rule = -1)
    FAULT(RULE, a->rule = FLASHOPTIM_ADAN + 1)
    FAULT(RULE, a->rule = INT32_MAX)
    FAULT(FORMAT, a->format = -1)
    FAULT(FORMAT, a->format = FLASHOPTIM_FORMAT_FLOAT32 + 1)
    FAULT(MOMENT, a->moment = -1)
    FAULT(MOMENT, a->moment = FLASHOPTIM_SECOND_MOMENT + 1)
    FAULT(YES, a->weights_too = 2)
    FAULT(f->call == call_load ? YES : 0, a->convert = -1)
    FAULT(STEPS, a->steps = -1)
    FAULT(STEPS, a->steps = INT64_MIN)
    FAULT(RATE, a->number = -1)
    FAULT(RATE | FACTOR, a->number = NAN)
    FAULT(FACTOR, a->number = INFINITY)
    FAULT(FACTOR, a->number = DBL_MAX)
    FAULT(SIZE_OUT, a->size_out = (size_t*)ODD(a->size_out))
    FAULT(INT64_OUT, a->int64_out = (int64_t*)ODD(a->int64_out))
    FAULT(UINT64_OUT, a->uint64_out = (uint64_t*)ODD(a->uint64_out))
    FAULT(f->call == call_step || f->call == call_step_parameter ? UINT64_OUT : 0,
          a->int32_out = (int32_t*)ODD(a->int32_out))
    FAULT(DOUBLE_OUT, a->double_out = (double*)ODD(a->double_out))
    FAULT(f->call == call_clip_grad_norm ? HANDLE : 0, a->pointer_out = (const double**)ODD(a->pointer_out))
    return NO_MORE;
}

static int expect_refused(const function* f, int n) {
    static subject s;
    static contents before, after;
    const char* what = "";
    flashoptim_optimizer* optimizer;
    flashoptim_status status;
    outcome found;
    make_subject(&s, f, saved);
    optimizer = s.with.optimizer;
    read_contents(&s, optimizer, &before);
    found = spoil(n, f, &s, &what);
    if (found == SPOILED) {
        status = f->call(&s.with);
        if (status != FLASHOPTIM_INVALID_ARGUMENT || strlen(flashoptim_last_error()) < 10 ||
            strchr(flashoptim_last_error(), '\n')) {
            fprintf(stderr, "%s with %s: status %d (%s)\n", f->name, what, (int)status,
                    flashoptim_last_error());
            ++failures;
        }
        read_contents(&s, optimizer, &after);
        if (memcmp(&before, &after, sizeof before) != 0) {
            fprintf(stderr, "%s with %s changed something\n", f->name, what);
            ++failures;
        }
    }
    EXPECT_OK(flashoptim_destroy(optimizer));
    return found != NO_MORE;
}

/* Without this a mistake in the table would make every refusal look right. */
static void expect_good(const function* f) {
    static subject s;
    make_subject(&s, f, saved);
    if (f->call(&s.with) != f->good) {
        fprintf(stderr, "%s with good arguments: %s\n", f->name, flashoptim_last_error());
        ++failures;
    }
    (void)flashoptim_destroy(s.with.optimizer);
    if (s.made != NULL) EXPECT_OK(flashoptim_destroy(s.made));
}

int main(int argc, char** argv) {
    static subject s;
    int f, n, faults = 0;
    if (argc != 2) return 2;
    snprintf(saved, sizeof saved, "%s/bad-arguments-checkpoint", argv[1]);
    memset(too_long, 'x', sizeof too_long - 1);
    EXPECT_OK(flashoptim_create(FLASHOPTIM_SGD, NULL, NULL, &dead));
    EXPECT_OK(flashoptim_destroy(dead));
    make_subject(&s, &functions[0], saved);
    EXPECT_OK(flashoptim_save(s.with.optimizer, saved, 1));
    EXPECT_OK(flashoptim_destroy(s.with.optimizer));
    for (f = 0; f < FUNCTIONS; ++f) {
        expect_good(&functions[f]);
        for (n = 0; expect_refused(&functions[f], n); ++n) ++faults;
    }
    EXPECT(faults > 1000);
    if (failures != 0) fprintf(stderr, "%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
