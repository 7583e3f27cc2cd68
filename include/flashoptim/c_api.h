/* The C interface: the framework-free optimizers and the number formats for C and any foreign function interface.
   Plain data and opaque handles only; nothing of C++ ever appears here. Compiles as C99, C11 and C++.

   Errors. Every function that can fail returns a status, FLASHOPTIM_OK being 0. What went wrong is then one line of text from
   flashoptim_last_error(), of the same thread. No exception ever leaves a function. Results are written through pointers, which
   may be NULL where nobody wants them, and are not written by a call that fails.

   Arguments. What a function cannot take it refuses, with FLASHOPTIM_INVALID_ARGUMENT and the remedy, and changes nothing: NULL
   where a value is needed, addresses that are not aligned for their type, numbers out of range, sizes of structs that no version has.
   Yes and no are the int32_t 1 and 0. Texts are UTF-8 of less than FLASHOPTIM_MAX_TEXT_BYTES bytes.

   Ownership. A handle is the caller's to destroy. It is no address of an object: what is not the handle of a live optimizer of this
   library is refused, also one that was destroyed. Weights and gradients stay in the caller's memory: weights until the handle is
   destroyed, a gradient until it is cleared or replaced (it is read in step, step_parameter and grad_norm). Descriptions of
   tensors, names and option structs are copied; strings that are returned belong to the library.

   Memory that ends. A call that cannot have the memory that it needs fails with FLASHOPTIM_OUT_OF_MEMORY and leaves everything as
   it was; it may be called again.

   Threads. One handle serves one thread at a time; different handles may be used in different threads at once. Functions without a
   handle may be called from anywhere at any time.

   Binary compatibility. Within one FLASHOPTIM_ABI_VERSION functions keep their parameters and enumerators their values, and structs
   only grow at their end. Each begins with its `size`, which the caller sets: by the *_init function or macro, or as sizeof. An older
   program's shorter struct is taken, with defaults for the rest; a newer program's longer one where the rest is 0, or is filled with
   zeros. Enumerations are passed as int32_t. The number is raised only
   together with the shared library's SOVERSION: docs/versioning.md. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FLASHOPTIM_ABI_VERSION 2

/* Bounds of what is taken. */
#define FLASHOPTIM_MAX_DIMENSIONS 64    /* of a tensor */
#define FLASHOPTIM_MAX_TEXT_BYTES 4096  /* of a name or folder, with the 0 at its end */
#define FLASHOPTIM_MAX_STRUCT_SIZE 4096 /* of a struct of a newer version */
#define FLASHOPTIM_MAX_ERROR_BYTES 1024 /* of the text of an error, with the 0 at its end */

/* Values that stand for "none" or "as usual". */
#define FLASHOPTIM_AUTOMATIC_THREADS \
    0 /* options.threads: OMP_NUM_THREADS if set, else CPUs that may be used */
#define FLASHOPTIM_FIRST_LEARNING_RATE 0.0 /* hyperparameters.initial_learning_rate: the group's first one */
#define FLASHOPTIM_ROW_MAJOR ((const int64_t*)NULL)         /* strides */
#define FLASHOPTIM_NO_SHARD ((const flashoptim_shard*)NULL) /* the parameter is a whole tensor */
#define FLASHOPTIM_DEFAULT_STREAM ((void*)NULL)             /* CUDA's */

/* The FLASHOPTIM_ABI_VERSION of the library that is linked; a program compares it with the header's. */
int32_t flashoptim_abi_version(void);
/* "0.1.0" */
const char* flashoptim_version(void);

typedef enum flashoptim_status {
    FLASHOPTIM_OK = 0,
    FLASHOPTIM_INVALID_ARGUMENT = 1, /* a value, shape, dtype, stride or option that cannot be taken */
    FLASHOPTIM_IO_ERROR = 2,         /* a file or folder missing, unreadable, unwritable; a full disk */
    FLASHOPTIM_FORMAT_ERROR = 3,     /* a file whose content is not what it has to be */
    FLASHOPTIM_NONFINITE = 4,        /* bad gradients under FLASHOPTIM_NONFINITE_ERROR: nothing was stepped */
    FLASHOPTIM_OUT_OF_MEMORY = 5,
    FLASHOPTIM_INTERNAL_ERROR = 6, /* anything else, such as threads that cannot be started */
    FLASHOPTIM_DEVICE_ERROR = 7    /* what CUDA refused; device memory that is full among it */
} flashoptim_status;

/* What the last failed call of this thread had to say: one line of UTF-8, shorter than FLASHOPTIM_MAX_ERROR_BYTES; "" if none has
   failed. Valid until the next failed call of this thread. */
const char* flashoptim_last_error(void);

typedef enum flashoptim_dtype {
    FLASHOPTIM_FLOAT32 = 0,
    FLASHOPTIM_BFLOAT16 = 1,
    FLASHOPTIM_FLOAT16 = 2
} flashoptim_dtype;

typedef enum flashoptim_rule {
    FLASHOPTIM_SGD = 0,   /* weight decay as an L2 term of the gradient */
    FLASHOPTIM_SGDW = 1,  /* weight decay apart from the gradient */
    FLASHOPTIM_ADAM = 2,  /* L2 */
    FLASHOPTIM_ADAMW = 3, /* apart */
    FLASHOPTIM_LION = 4   /* apart */
} flashoptim_rule;

typedef enum flashoptim_format {
    FLASHOPTIM_FORMAT_NATIVE = 0, /* 8-bit square-law codes, sticky bfloat16 scales, integer weight split */
    FLASHOPTIM_FORMAT_PAPER = 1,  /* that of arXiv 2602.23349 */
    FLASHOPTIM_FORMAT_FLOAT32 = 2 /* uncompressed moments */
} flashoptim_format;

typedef enum flashoptim_nonfinite {
    FLASHOPTIM_NONFINITE_SKIP_ELEMENT = 0, /* a bad element keeps its weight and moments and is counted */
    FLASHOPTIM_NONFINITE_SKIP_STEP = 1,    /* one bad element: nothing changes */
    FLASHOPTIM_NONFINITE_ERROR = 2         /* the same, and the call fails with FLASHOPTIM_NONFINITE */
} flashoptim_nonfinite;

typedef enum flashoptim_backend {
    FLASHOPTIM_BACKEND_AUTOMATIC = 0,
    FLASHOPTIM_BACKEND_SCALAR = 1,
    FLASHOPTIM_BACKEND_PORTABLE = 2,
    FLASHOPTIM_BACKEND_AVX2 = 3,
    FLASHOPTIM_BACKEND_AVX512 = 4,
    FLASHOPTIM_BACKEND_AVX512_VBMI = 5,
    FLASHOPTIM_BACKEND_NEON = 6
} flashoptim_backend;

typedef enum flashoptim_master_weight_bits {
    FLASHOPTIM_MASTER_NEAREST = 0,   /* none: stored weights are rounded to nearest */
    FLASHOPTIM_MASTER_DITHERED = 16, /* none: rounded up or down by a dither; not in the paper's format */
    FLASHOPTIM_MASTER_24_BITS = 24,
    FLASHOPTIM_MASTER_32_BITS = 32
} flashoptim_master_weight_bits;

typedef enum flashoptim_place { FLASHOPTIM_HOST = 0, FLASHOPTIM_CUDA = 1 } flashoptim_place;

typedef enum flashoptim_moment {
    FLASHOPTIM_FIRST_MOMENT = 0,
    FLASHOPTIM_SECOND_MOMENT = 1
} flashoptim_moment;

/* Options that hold for all parameters of an optimizer. */
typedef struct flashoptim_options {
    size_t size;                /* sizeof(flashoptim_options); set by flashoptim_options_init */
    int32_t format;             /* flashoptim_format */
    int32_t master_weight_bits; /* flashoptim_master_weight_bits, of 16-bit weights */
    int32_t quantize;           /* 0 keeps the moments in fp32 whatever the format */
    int32_t nonfinite;          /* flashoptim_nonfinite */
    int32_t check_gradients;    /* paper format only: 0 takes NaN and Inf as they come */
    int32_t threads;            /* of the host, or FLASHOPTIM_AUTOMATIC_THREADS */
    int32_t
        backend; /* flashoptim_backend, refused where the processor lacks it; results do not depend on it */
    int32_t reserved;               /* 0 */
    int64_t min_quantized_numel;    /* native: smaller tensors keep fp32 moments */
    int64_t min_quantized_numel_1d; /* the same for tensors of one dimension */
    /* flashoptim_place of weights, gradients and state. With FLASHOPTIM_CUDA their addresses are those of memory of the device,
       and steps are enqueued on the stream: they return at once under FLASHOPTIM_NONFINITE_SKIP_ELEMENT, where they write 0 to
       `bad_elements` (flashoptim_bad_elements counts them). Every function that gives values waits for them. Refused where the
       library was built without CUDA. */
    int32_t place;
    int32_t device; /* CUDA's number of it; 0 on the host */
    void* stream;   /* cudaStream_t or FLASHOPTIM_DEFAULT_STREAM; NULL on the host */
} flashoptim_options;

/* CUDA devices that a process can use; 0 also where the library was built without CUDA. */
int32_t flashoptim_cuda_device_count(void);

/* Fills in the defaults. `size` is sizeof(flashoptim_options). */
flashoptim_status flashoptim_options_init(flashoptim_options* options, size_t size);

/* Every hyperparameter of every rule; a rule reads its own. */
typedef struct flashoptim_hyperparameters {
    size_t size; /* sizeof(flashoptim_hyperparameters); set by flashoptim_hyperparameters_init */
    double learning_rate;
    double beta1;   /* Adam, Lion */
    double beta2;   /* Adam, Lion */
    double epsilon; /* Adam */
    double weight_decay;
    double momentum;              /* SGD */
    double dampening;             /* SGD */
    double initial_learning_rate; /* what fully_decoupled measures by, or FLASHOPTIM_FIRST_LEARNING_RATE */
    int32_t nesterov;             /* SGD */
    int32_t maximize;
    int32_t fully_decoupled; /* decay by weight_decay * learning_rate / initial_learning_rate */
    int32_t reserved;        /* 0 */
} flashoptim_hyperparameters;

/* Fills in the defaults of the rule. `size` is sizeof(flashoptim_hyperparameters). */
flashoptim_status flashoptim_hyperparameters_init(flashoptim_hyperparameters* hyperparameters, size_t size,
                                                  int32_t rule);

/* A tensor in the caller's memory. */
typedef struct flashoptim_tensor {
    size_t size;            /* sizeof(flashoptim_tensor); set by FLASHOPTIM_TENSOR_INIT */
    void* data;             /* a multiple of the dtype's bytes */
    int32_t dtype;          /* flashoptim_dtype */
    int32_t ndim;           /* at most FLASHOPTIM_MAX_DIMENSIONS */
    const int64_t* shape;   /* ndim extents */
    const int64_t* strides; /* ndim strides in elements, or FLASHOPTIM_ROW_MAJOR */
} flashoptim_tensor;
#define FLASHOPTIM_TENSOR_INIT \
    {sizeof(flashoptim_tensor), NULL, FLASHOPTIM_FLOAT32, 0, NULL, FLASHOPTIM_ROW_MAJOR}

/* Which part of a larger tensor a parameter is; ndim values each. */
typedef struct flashoptim_shard {
    size_t size; /* sizeof(flashoptim_shard); set by FLASHOPTIM_SHARD_INIT */
    const int64_t* whole_shape;
    const int64_t* whole_strides; /* or FLASHOPTIM_ROW_MAJOR */
    const int64_t* offset;        /* index of the shard's first element in the whole tensor */
} flashoptim_shard;
#define FLASHOPTIM_SHARD_INIT {sizeof(flashoptim_shard), NULL, FLASHOPTIM_ROW_MAJOR, NULL}

typedef struct flashoptim_optimizer flashoptim_optimizer;

/* Makes an optimizer with group 0. NULL hyperparameters or options: the defaults. The handle is written to `optimizer`. */
flashoptim_status flashoptim_create(int32_t rule, const flashoptim_hyperparameters* hyperparameters,
                                    const flashoptim_options* options, flashoptim_optimizer** optimizer);
/* Frees the handle and the state, not the weights. NULL is allowed; a handle that was destroyed already is refused, and so is a
   foreign one. */
flashoptim_status flashoptim_destroy(flashoptim_optimizer* optimizer);

/* Enqueues what follows on another stream of the optimizer's device. What is under way on the former one must come before it. */
flashoptim_status flashoptim_set_stream(flashoptim_optimizer* optimizer, void* stream);

/* Adds a parameter group; its number is written to `group`. */
flashoptim_status flashoptim_add_group(flashoptim_optimizer* optimizer,
                                       const flashoptim_hyperparameters* hyperparameters, size_t* group);
/* Adds a weight and allocates its state. `name` (UTF-8; NULL: a number) is for messages and saved files. `shard` may be FLASHOPTIM_NO_SHARD. The
   number by which the other functions know the parameter is written to `parameter`: 0, 1, 2, ... in order. */
flashoptim_status flashoptim_add_parameter(flashoptim_optimizer* optimizer, const flashoptim_tensor* weight,
                                           const char* name, size_t group, const flashoptim_shard* shard,
                                           size_t* parameter);
flashoptim_status flashoptim_parameter_count(const flashoptim_optimizer* optimizer, size_t* count);

/* Hyperparameters take effect in the next step. `hyperparameters->size` must be set when they are read, too. */
flashoptim_status flashoptim_get_hyperparameters(const flashoptim_optimizer* optimizer, size_t group,
                                                 flashoptim_hyperparameters* hyperparameters);
flashoptim_status flashoptim_set_hyperparameters(flashoptim_optimizer* optimizer, size_t group,
                                                 const flashoptim_hyperparameters* hyperparameters);
/* Of every group. */
flashoptim_status flashoptim_set_learning_rate(flashoptim_optimizer* optimizer, double learning_rate);
flashoptim_status flashoptim_set_group_learning_rate(flashoptim_optimizer* optimizer, size_t group,
                                                     double learning_rate);

/* Where the gradient lies: the weight's shape, any floating dtype, any strides (also expanded). Refused where it lies in the memory of
   a weight of this optimizer, which a step writes while it reads gradients. */
flashoptim_status flashoptim_set_gradient(flashoptim_optimizer* optimizer, size_t parameter,
                                          const flashoptim_tensor* gradient);
flashoptim_status flashoptim_clear_gradient(flashoptim_optimizer* optimizer, size_t parameter);
/* Multiplies every gradient as it is read: 1/loss scale times clip coefficient. 1 at first. */
flashoptim_status flashoptim_set_gradient_factor(flashoptim_optimizer* optimizer, double factor);
/* Loss scale: gradients are also multiplied by 1 / *scale, as fp32, from now on. It lies where the gradients do (on a device in its
   memory) and is read by each step and norm when that runs, so that nobody waits for it. Not copied; NULL takes it back. */
flashoptim_status flashoptim_set_grad_scale(flashoptim_optimizer* optimizer, const float* scale);
/* A number in the same place: where it is not 0 when a step runs, nothing is stepped and nothing counted. Steps on a device are then
   counted there: flashoptim_step_count and flashoptim_save wait for them, and under FLASHOPTIM_NONFINITE_SKIP_ELEMENT `skipped` does
   not tell of it. */
flashoptim_status flashoptim_set_found_inf(flashoptim_optimizer* optimizer, const float* found_inf);
/* Euclidean norm of all gradients that are set, times the factor and 1 / loss scale; bad elements are left out. */
flashoptim_status flashoptim_grad_norm(flashoptim_optimizer* optimizer, double* norm);
/* The same, but nobody waits, and the next flashoptim_step (not step_parameter) also multiplies gradients by
   min(1, max_norm / (norm + 1e-6)). Where the norm comes to lie is written to `norm`: memory of the device, or of the host where
   the optimizer is there, until the next call. */
flashoptim_status flashoptim_clip_grad_norm(flashoptim_optimizer* optimizer, double max_norm,
                                            const double** norm);

/* Steps every parameter that has a gradient. `skipped`: 1 if FLASHOPTIM_NONFINITE_SKIP_STEP or found_inf
   changed nothing, else 0. */
flashoptim_status flashoptim_step(flashoptim_optimizer* optimizer, uint64_t* bad_elements, int32_t* skipped);
/* Steps one parameter, which must have a gradient (gradient release). */
flashoptim_status flashoptim_step_parameter(flashoptim_optimizer* optimizer, size_t parameter,
                                            uint64_t* bad_elements, int32_t* skipped);

/* Steps that the parameter has made. */
flashoptim_status flashoptim_step_count(const flashoptim_optimizer* optimizer, size_t parameter,
                                        int64_t* steps);
flashoptim_status flashoptim_set_step_count(flashoptim_optimizer* optimizer, size_t parameter, int64_t steps);
/* Elements of the parameter that were skipped since it was added. */
flashoptim_status flashoptim_bad_elements(const flashoptim_optimizer* optimizer, size_t parameter,
                                          uint64_t* count);

/* Full-precision weights in memory order; `count` is the number of elements. Setting writes the weight and its correction. */
flashoptim_status flashoptim_copy_master(const flashoptim_optimizer* optimizer, size_t parameter,
                                         float* values, size_t count);
flashoptim_status flashoptim_set_master(flashoptim_optimizer* optimizer, size_t parameter,
                                        const float* values, size_t count);
/* Takes what a weight (every weight) holds now for the master: clears its correction. Without this a weight that was written from outside
 * keeps its correction, which moves the master by at most half a unit in the last place of the stored weight. Only this,
 * flashoptim_set_master and loading a state replace corrections. */
flashoptim_status flashoptim_refresh_master(flashoptim_optimizer* optimizer, size_t parameter);
flashoptim_status flashoptim_refresh_masters(flashoptim_optimizer* optimizer);
/* fp32 values of a moment in memory order. Fails where the rule has no such moment. */
flashoptim_status flashoptim_copy_moment(const flashoptim_optimizer* optimizer, size_t parameter,
                                         int32_t moment, float* values, size_t count);

/* Saves into a folder, complete or not at all; `weights` 0 leaves the weights out. */
flashoptim_status flashoptim_save(flashoptim_optimizer* optimizer, const char* folder, int32_t weights);
/* Loads what flashoptim_save wrote into an optimizer with the same groups and parameters. `weights` 0 leaves the weights alone;
   `convert` 0 refuses state of another format or stride order, otherwise it is encoded again and the number of such parameters
   written to `converted`. A call that fails leaves the optimizer as it was. */
flashoptim_status flashoptim_load(flashoptim_optimizer* optimizer, const char* folder, int32_t weights,
                                  int32_t convert, size_t* converted);

/* Bytes by kind. */
typedef struct flashoptim_memory {
    size_t size; /* sizeof(flashoptim_memory); set by FLASHOPTIM_MEMORY_INIT */
    uint64_t weights;
    uint64_t corrections;
    uint64_t moments;
    uint64_t scales;
    uint64_t gradients;
    uint64_t total;
    int64_t parameters; /* elements */
} flashoptim_memory;
#define FLASHOPTIM_MEMORY_INIT {sizeof(flashoptim_memory), 0, 0, 0, 0, 0, 0, 0}
flashoptim_status flashoptim_memory_report(const flashoptim_optimizer* optimizer, flashoptim_memory* report);

/* The formats alone. `values` describes dense fp32 moments (v itself, not its root); codes are one byte for each element, in the same
   order, and there are flashoptim_scale_count scales of 16 bits. Native or paper; rounding is to nearest. Buffers that overlap are
   refused. */
flashoptim_status flashoptim_scale_count(int32_t format, const flashoptim_tensor* values, size_t* count);
flashoptim_status flashoptim_quantize_moment(int32_t format, int32_t moment, const flashoptim_tensor* values,
                                             void* codes, uint16_t* scales, size_t scale_count);
flashoptim_status flashoptim_dequantize_moment(int32_t format, int32_t moment, const void* codes,
                                               const uint16_t* scales, size_t scale_count,
                                               const flashoptim_tensor* values);
/* Full-precision weights to stored weights of `dtype` and corrections (int8 for 24 bits, int16 for 32, none for 0, 16 and fp32
   weights) and back; `count` elements each. Buffers of 16-bit weights that overlap are refused. */
flashoptim_status flashoptim_split_weights(int32_t format, int32_t dtype, int32_t master_weight_bits,
                                           size_t count, const float* masters, void* weights,
                                           void* corrections);
flashoptim_status flashoptim_join_weights(int32_t format, int32_t dtype, int32_t master_weight_bits,
                                          size_t count, const void* weights, const void* corrections,
                                          float* masters);

#ifdef __cplusplus
}
#endif
