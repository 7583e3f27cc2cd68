/** @file
   The C interface: the framework-free optimizers and the number formats for C and any foreign function
   interface. It has plain data and opaque handles only, nothing of C++. It compiles as C99, C11 and C++.

   Errors. Every function that can fail returns a status; FLASHOPTIM_OK is 0. After a failure
   flashoptim_last_error() returns one line of text in the same thread. No exception leaves a function.
   Results are written through pointers, which may be NULL if the caller does not need the result. A call that
   fails writes none.

   Arguments. A function refuses bad arguments with FLASHOPTIM_INVALID_ARGUMENT and changes nothing: NULL for
   a required value, an address that is not aligned for its type, a number out of range, a struct size that no
   version had. The message names the remedy. Yes and no are the int32_t 1 and 0. Texts are UTF-8 of less than
   FLASHOPTIM_MAX_TEXT_BYTES bytes.

   Ownership. The caller destroys a handle. A handle is not the address of an object: the library refuses a
   value that is not the handle of a live optimizer, also one that was destroyed. Weights and gradients stay
   in the caller's memory. A weight must live until the handle is destroyed, a gradient until it is cleared or
   replaced (step, step_parameter and the norms read it). Descriptions of tensors, names and option structs
   are copied. Returned strings belong to the library.

   Out of memory. The call fails with FLASHOPTIM_OUT_OF_MEMORY, changes nothing and may be repeated.

   Threads. One handle serves one thread at a time. Different handles may be used in different threads at
   once. Functions without a handle may be called in any thread at any time.

   Binary compatibility. Within one FLASHOPTIM_ABI_VERSION functions keep their parameters, enumerators keep
   their values, and structs only grow at their end. Each struct begins with its `size`, which the caller
   sets: by the *_init function or macro, or as sizeof. The library takes the shorter struct of an older
   program, with defaults for the rest. It takes the longer struct of a newer program if the rest is 0; in a
   struct that it fills in it sets the rest to 0. Enumerations are passed as int32_t. The number is raised
   only together with the shared library's SOVERSION (docs/versioning.md). */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Version of this interface. */
#define FLASHOPTIM_ABI_VERSION 2

#define FLASHOPTIM_MAX_DIMENSIONS 64    /**< most dimensions of a tensor */
#define FLASHOPTIM_MAX_TEXT_BYTES 4096  /**< most bytes of a name or folder, with the 0 at its end */
#define FLASHOPTIM_MAX_STRUCT_SIZE 4096 /**< most bytes of a struct of a newer version */
#define FLASHOPTIM_MAX_ERROR_BYTES 1024 /**< most bytes of the text of an error, with the 0 at its end */

/** For flashoptim_options::threads: OMP_NUM_THREADS if it is set, else the number of usable CPUs. */
#define FLASHOPTIM_AUTOMATIC_THREADS 0
/** For flashoptim_hyperparameters::initial_learning_rate: the first learning rate of the group. */
#define FLASHOPTIM_FIRST_LEARNING_RATE 0.0
/** For strides: row-major. */
#define FLASHOPTIM_ROW_MAJOR ((const int64_t*)NULL)
/** The parameter is a whole tensor. */
#define FLASHOPTIM_NO_SHARD ((const flashoptim_shard*)NULL)
/** CUDA's default stream. */
#define FLASHOPTIM_DEFAULT_STREAM ((void*)NULL)

/** The FLASHOPTIM_ABI_VERSION of the linked library. A program compares it with the header's. */
int32_t flashoptim_abi_version(void);
/** The version of the linked library: "0.1.0". */
const char* flashoptim_version(void);

/** Result of a call. */
typedef enum flashoptim_status {
    FLASHOPTIM_OK = 0,
    FLASHOPTIM_INVALID_ARGUMENT = 1, /**< a bad value, shape, dtype, stride or option */
    FLASHOPTIM_IO_ERROR = 2,         /**< a file that is missing or cannot be read or written; a full disk */
    FLASHOPTIM_FORMAT_ERROR = 3,     /**< a file with wrong content */
    FLASHOPTIM_NONFINITE = 4,      /**< bad gradients under FLASHOPTIM_NONFINITE_ERROR: nothing was stepped */
    FLASHOPTIM_OUT_OF_MEMORY = 5,  /**< no host memory */
    FLASHOPTIM_INTERNAL_ERROR = 6, /**< anything else, such as threads that cannot be started */
    FLASHOPTIM_DEVICE_ERROR = 7    /**< an error of CUDA, including device memory that is full */
} flashoptim_status;

/** The message of the last failed call of this thread, "" if none has failed: one line of UTF-8, shorter than
   FLASHOPTIM_MAX_ERROR_BYTES. Valid until the next failed call of this thread. */
const char* flashoptim_last_error(void);

/** Element type of a weight or a gradient. */
typedef enum flashoptim_dtype {
    FLASHOPTIM_FLOAT32 = 0,
    FLASHOPTIM_BFLOAT16 = 1,
    FLASHOPTIM_FLOAT16 = 2
} flashoptim_dtype;

/** Update rule (docs/optimizers). */
typedef enum flashoptim_rule {
    FLASHOPTIM_SGD = 0,      /**< weight decay as an L2 term of the gradient */
    FLASHOPTIM_SGDW = 1,     /**< decoupled weight decay */
    FLASHOPTIM_ADAM = 2,     /**< weight decay as an L2 term of the gradient */
    FLASHOPTIM_ADAMW = 3,    /**< decoupled weight decay */
    FLASHOPTIM_LION = 4,     /**< decoupled weight decay */
    FLASHOPTIM_ADEMAMIX = 5, /**< decoupled weight decay; not in FLASHOPTIM_FORMAT_PAPER */
    FLASHOPTIM_ADAN = 6      /**< proximal weight decay; not in FLASHOPTIM_FORMAT_PAPER */
} flashoptim_rule;

/** Number format of the moments and of the weights' corrections (docs/formats.md). */
typedef enum flashoptim_format {
    FLASHOPTIM_FORMAT_NATIVE = 0, /**< 8-bit square-law codes, sticky bfloat16 scales, integer weight split */
    FLASHOPTIM_FORMAT_PAPER = 1,  /**< the format of arXiv 2602.23349 */
    FLASHOPTIM_FORMAT_FLOAT32 = 2 /**< uncompressed moments */
} flashoptim_format;

/** What a step does with a bad gradient: NaN, Inf or a magnitude of at least 2^48. */
typedef enum flashoptim_nonfinite {
    FLASHOPTIM_NONFINITE_SKIP_ELEMENT = 0, /**< its element keeps its weight and moments, and is counted */
    FLASHOPTIM_NONFINITE_SKIP_STEP = 1,    /**< nothing changes */
    FLASHOPTIM_NONFINITE_ERROR = 2 /**< nothing changes and the call fails with FLASHOPTIM_NONFINITE */
} flashoptim_nonfinite;

/** Instruction set of a step on the host. All give the same bits. */
typedef enum flashoptim_backend {
    FLASHOPTIM_BACKEND_AUTOMATIC = 0,
    FLASHOPTIM_BACKEND_SCALAR = 1,
    FLASHOPTIM_BACKEND_PORTABLE = 2,
    FLASHOPTIM_BACKEND_AVX2 = 3,
    FLASHOPTIM_BACKEND_AVX512 = 4,
    FLASHOPTIM_BACKEND_AVX512_VBMI = 5,
    FLASHOPTIM_BACKEND_NEON = 6
} flashoptim_backend;

/** Bits of the master weight over a 16-bit weight. */
typedef enum flashoptim_master_weight_bits {
    FLASHOPTIM_MASTER_NEAREST = 0,   /**< no correction; weights are rounded to nearest */
    FLASHOPTIM_MASTER_DITHERED = 16, /**< no correction; weights are rounded with dither (not in paper) */
    FLASHOPTIM_MASTER_24_BITS = 24,  /**< 8-bit corrections */
    FLASHOPTIM_MASTER_32_BITS = 32   /**< 16-bit corrections */
} flashoptim_master_weight_bits;

/** Where weights, gradients and state lie. */
typedef enum flashoptim_place { FLASHOPTIM_HOST = 0, FLASHOPTIM_CUDA = 1 } flashoptim_place;

/** The kinds of moments. They are also the numbers of the first and the second moment of Adam;
   flashoptim_moment_name() gives the moments of every rule. */
typedef enum flashoptim_moment {
    FLASHOPTIM_FIRST_MOMENT = 0,
    FLASHOPTIM_SECOND_MOMENT = 1
} flashoptim_moment;

/** Options that hold for all parameters of an optimizer. */
typedef struct flashoptim_options {
    size_t size;                    /**< sizeof(flashoptim_options); set by flashoptim_options_init */
    int32_t format;                 /**< flashoptim_format */
    int32_t master_weight_bits;     /**< flashoptim_master_weight_bits; for 16-bit weights */
    int32_t quantize;               /**< 0 keeps the moments in fp32, whatever the format */
    int32_t nonfinite;              /**< flashoptim_nonfinite */
    int32_t check_gradients;        /**< paper format only: 0 takes NaN and Inf gradients as they are */
    int32_t threads;                /**< threads of the host, or FLASHOPTIM_AUTOMATIC_THREADS */
    int32_t backend;                /**< flashoptim_backend; refused if the processor lacks it */
    int32_t reserved;               /**< 0 */
    int64_t min_quantized_numel;    /**< native format: smaller tensors keep fp32 moments */
    int64_t min_quantized_numel_1d; /**< the same for tensors of one dimension */
    /** flashoptim_place. With FLASHOPTIM_CUDA all addresses of weights and gradients are in device memory,
       and steps are enqueued on the stream. Under FLASHOPTIM_NONFINITE_SKIP_ELEMENT a step does not block and
       writes 0 to `bad_elements`; flashoptim_bad_elements counts them. Functions that return values block.
       Refused if the library was built without CUDA. */
    int32_t place;
    int32_t device; /**< CUDA's number of the device; 0 on the host */
    void* stream;   /**< cudaStream_t or FLASHOPTIM_DEFAULT_STREAM; NULL on the host */
} flashoptim_options;

/** Number of CUDA devices that the process can use; 0 if the library was built without CUDA. */
int32_t flashoptim_cuda_device_count(void);

/** Fills in the defaults. `size` is sizeof(flashoptim_options). */
flashoptim_status flashoptim_options_init(flashoptim_options* options, size_t size);

/** The hyperparameters of all rules. A rule reads its own. */
typedef struct flashoptim_hyperparameters {
    size_t size; /**< sizeof(flashoptim_hyperparameters); set by flashoptim_hyperparameters_init */
    double learning_rate;
    double beta1;
    double beta2;
    double epsilon;
    double weight_decay;
    double momentum;
    double dampening;
    double initial_learning_rate; /**< reference of fully_decoupled, or FLASHOPTIM_FIRST_LEARNING_RATE */
    int32_t nesterov;
    int32_t maximize;        /**< 1 steps along the gradient instead of against it */
    int32_t fully_decoupled; /**< decay by weight_decay * learning_rate / initial_learning_rate */
    int32_t reserved;        /**< 0 */
    double beta3;            /**< of AdEMAMix's slow mean, of Adan's squares */
    double alpha;            /**< weight of the slow mean */
    double alpha_warmup;     /**< steps in which alpha grows from 0; 0: none */
    double beta3_warmup;     /**< steps in which beta3 grows from beta1; 0: none */
    int32_t no_prox;         /**< Adan: decay multiplies the old weight instead of dividing the new one */
    int32_t reserved2;       /**< 0 */
} flashoptim_hyperparameters;

/** Fills in the defaults of the rule. `size` is sizeof(flashoptim_hyperparameters). */
flashoptim_status flashoptim_hyperparameters_init(flashoptim_hyperparameters* hyperparameters, size_t size,
                                                  int32_t rule);

/** A tensor in the caller's memory. */
typedef struct flashoptim_tensor {
    size_t size;            /**< sizeof(flashoptim_tensor); set by FLASHOPTIM_TENSOR_INIT */
    void* data;             /**< a multiple of the dtype's bytes */
    int32_t dtype;          /**< flashoptim_dtype */
    int32_t ndim;           /**< at most FLASHOPTIM_MAX_DIMENSIONS */
    const int64_t* shape;   /**< ndim extents */
    const int64_t* strides; /**< ndim strides in elements, or FLASHOPTIM_ROW_MAJOR */
} flashoptim_tensor;
/** Initializer of a flashoptim_tensor. */
#define FLASHOPTIM_TENSOR_INIT \
    {sizeof(flashoptim_tensor), NULL, FLASHOPTIM_FLOAT32, 0, NULL, FLASHOPTIM_ROW_MAJOR}

/** Which part of a larger tensor a parameter is; ndim values each. */
typedef struct flashoptim_shard {
    size_t size;                  /**< sizeof(flashoptim_shard); set by FLASHOPTIM_SHARD_INIT */
    const int64_t* whole_shape;   /**< shape of the whole tensor */
    const int64_t* whole_strides; /**< its strides in elements, or FLASHOPTIM_ROW_MAJOR */
    const int64_t* offset;        /**< index of the shard's first element in the whole tensor */
} flashoptim_shard;
/** Initializer of a flashoptim_shard. */
#define FLASHOPTIM_SHARD_INIT {sizeof(flashoptim_shard), NULL, FLASHOPTIM_ROW_MAJOR, NULL}

/** Handle of an optimizer. */
typedef struct flashoptim_optimizer flashoptim_optimizer;

/** Makes an optimizer with group 0 and writes its handle to `optimizer`. NULL hyperparameters or options: the
   defaults. */
flashoptim_status flashoptim_create(int32_t rule, const flashoptim_hyperparameters* hyperparameters,
                                    const flashoptim_options* options, flashoptim_optimizer** optimizer);
/** Frees the handle and the state, not the weights. NULL is allowed. A handle that was destroyed already, or
   that this library did not make, is refused. */
flashoptim_status flashoptim_destroy(flashoptim_optimizer* optimizer);

/** Enqueues all further work on another stream of the optimizer's device. The caller orders the work that is
   still running on the former stream before it. */
flashoptim_status flashoptim_set_stream(flashoptim_optimizer* optimizer, void* stream);

/** Adds a parameter group and writes its number to `group`. */
flashoptim_status flashoptim_add_group(flashoptim_optimizer* optimizer,
                                       const flashoptim_hyperparameters* hyperparameters, size_t* group);
/** Adds a weight and allocates its state.
   @param optimizer handle
   @param weight    in any dense stride order
   @param name      for messages and saved files (UTF-8); NULL: a number
   @param group     the group whose hyperparameters it takes
   @param shard     where the weight lies in a larger tensor, or FLASHOPTIM_NO_SHARD
   @param parameter receives the number of the parameter: 0, 1, 2, ... in order */
flashoptim_status flashoptim_add_parameter(flashoptim_optimizer* optimizer, const flashoptim_tensor* weight,
                                           const char* name, size_t group, const flashoptim_shard* shard,
                                           size_t* parameter);
/** Writes the number of parameters to `count`. */
flashoptim_status flashoptim_parameter_count(const flashoptim_optimizer* optimizer, size_t* count);

/** Reads the hyperparameters of a group. `hyperparameters->size` must be set before. */
flashoptim_status flashoptim_get_hyperparameters(const flashoptim_optimizer* optimizer, size_t group,
                                                 flashoptim_hyperparameters* hyperparameters);
/** Replaces the hyperparameters of a group from the next step on. */
flashoptim_status flashoptim_set_hyperparameters(flashoptim_optimizer* optimizer, size_t group,
                                                 const flashoptim_hyperparameters* hyperparameters);
/** Sets the learning rate of every group from the next step on. */
flashoptim_status flashoptim_set_learning_rate(flashoptim_optimizer* optimizer, double learning_rate);
/** Sets the learning rate of one group from the next step on. */
flashoptim_status flashoptim_set_group_learning_rate(flashoptim_optimizer* optimizer, size_t group,
                                                     double learning_rate);

/** Says where the gradient of a parameter lies: in the weight's shape, with any floating dtype and any
   strides (also expanded). It must not lie in the memory of a weight of this optimizer, because a step writes
   weights while it reads gradients. */
flashoptim_status flashoptim_set_gradient(flashoptim_optimizer* optimizer, size_t parameter,
                                          const flashoptim_tensor* gradient);
/** Forgets the gradient of a parameter. Steps leave the parameter out. */
flashoptim_status flashoptim_clear_gradient(flashoptim_optimizer* optimizer, size_t parameter);
/** Sets a factor for all gradients, 1 at first: 1 / loss scale times clip coefficient. Steps and norms
   multiply each gradient by it as they read it. */
flashoptim_status flashoptim_set_gradient_factor(flashoptim_optimizer* optimizer, double factor);
/** Sets a loss scale by its address: steps and norms also multiply gradients by 1 / *scale, in fp32. Each
   reads it when it runs, so that setting it does not block. The number lies where the gradients do (in device
   memory for CUDA) and is not copied. NULL: no loss scale. */
flashoptim_status flashoptim_set_grad_scale(flashoptim_optimizer* optimizer, const float* scale);
/** Sets the address of a flag in the same place. If it is not 0 when a step runs, that step changes nothing
   and counts nothing. A device then counts steps itself: flashoptim_step_count and flashoptim_save block, and
   under FLASHOPTIM_NONFINITE_SKIP_ELEMENT `skipped` stays 0. NULL: no flag. */
flashoptim_status flashoptim_set_found_inf(flashoptim_optimizer* optimizer, const float* found_inf);
/** Euclidean norm of all gradients that are set, times the factor and 1 / loss scale. Bad elements are left
   out. */
flashoptim_status flashoptim_grad_norm(flashoptim_optimizer* optimizer, double* norm);
/** Computes the same norm without blocking. The next flashoptim_step (not flashoptim_step_parameter) also
   multiplies gradients by min(1, max_norm / (norm + 1e-6)). The address of the norm, in device memory (host
   memory for an optimizer on the host), is written to `norm`; it is valid until the next call. */
flashoptim_status flashoptim_clip_grad_norm(flashoptim_optimizer* optimizer, double max_norm,
                                            const double** norm);

/** Steps every parameter that has a gradient.
   @param optimizer    handle
   @param bad_elements receives the number of bad elements
   @param skipped      receives 1 if FLASHOPTIM_NONFINITE_SKIP_STEP or found_inf kept the step back, else 0 */
flashoptim_status flashoptim_step(flashoptim_optimizer* optimizer, uint64_t* bad_elements, int32_t* skipped);
/** Steps one parameter, which must have a gradient (gradient release). */
flashoptim_status flashoptim_step_parameter(flashoptim_optimizer* optimizer, size_t parameter,
                                            uint64_t* bad_elements, int32_t* skipped);

/** Number of steps that a parameter has made. */
flashoptim_status flashoptim_step_count(const flashoptim_optimizer* optimizer, size_t parameter,
                                        int64_t* steps);
/** Sets the number of steps that a parameter has made. */
flashoptim_status flashoptim_set_step_count(flashoptim_optimizer* optimizer, size_t parameter, int64_t steps);
/** Number of bad elements of a parameter since it was added. */
flashoptim_status flashoptim_bad_elements(const flashoptim_optimizer* optimizer, size_t parameter,
                                          uint64_t* count);

/** Copies the master weight in memory order. `count` is the parameter's number of elements. */
flashoptim_status flashoptim_copy_master(const flashoptim_optimizer* optimizer, size_t parameter,
                                         float* values, size_t count);
/** Sets the master weight: writes the stored weight and its correction. `values` are in memory order. */
flashoptim_status flashoptim_set_master(flashoptim_optimizer* optimizer, size_t parameter,
                                        const float* values, size_t count);
/** Makes the stored weight the master weight: clears the correction. Otherwise a weight that the caller
   writes between steps keeps its correction, which moves the master by at most half a unit in the last place
   of the stored weight. Only this function, flashoptim_set_master and loading replace corrections. */
flashoptim_status flashoptim_refresh_master(flashoptim_optimizer* optimizer, size_t parameter);
/** The same for every parameter. */
flashoptim_status flashoptim_refresh_masters(flashoptim_optimizer* optimizer);
/** The name of a rule as saved files spell it; NULL for a number that is no rule's. */
const char* flashoptim_rule_name(int32_t rule);
/** The name of moment `moment` of a rule, counted from 0, as saved files spell it; NULL if it has none. */
const char* flashoptim_moment_name(int32_t rule, int32_t moment);
/** Copies moment `moment`, counted from 0, as fp32 in memory order. Fails if the parameter has no such
   moment. */
flashoptim_status flashoptim_copy_moment(const flashoptim_optimizer* optimizer, size_t parameter,
                                         int32_t moment, float* values, size_t count);

/** Saves the optimizer into a folder, complete or not at all. `weights` 0 leaves the weights out. */
flashoptim_status flashoptim_save(flashoptim_optimizer* optimizer, const char* folder, int32_t weights);
/** Loads what flashoptim_save wrote. A call that fails leaves the optimizer as it was.
   @param optimizer with the same rule, groups and parameters
   @param folder    the saved folder
   @param weights   0 leaves the weights as they are
   @param convert   0 refuses state of another format or stride order; otherwise it is decoded and encoded
          again
   @param converted receives the number of parameters that were converted */
flashoptim_status flashoptim_load(flashoptim_optimizer* optimizer, const char* folder, int32_t weights,
                                  int32_t convert, size_t* converted);

/** The memory of an optimizer in bytes, by kind. */
typedef struct flashoptim_memory {
    size_t size; /**< sizeof(flashoptim_memory); set by FLASHOPTIM_MEMORY_INIT */
    uint64_t weights;
    uint64_t corrections;
    uint64_t moments;
    uint64_t scales;
    uint64_t gradients;
    uint64_t total;     /**< the sum of all kinds */
    int64_t parameters; /**< number of elements */
} flashoptim_memory;
/** Initializer of a flashoptim_memory. */
#define FLASHOPTIM_MEMORY_INIT {sizeof(flashoptim_memory), 0, 0, 0, 0, 0, 0, 0}
/** The memory that the optimizer uses now, with the caller's weights and gradients. */
flashoptim_status flashoptim_memory_report(const flashoptim_optimizer* optimizer, flashoptim_memory* report);

/** The number formats without an optimizer: writes to `count` how many 16-bit scales a moment of this shape
   has. `format` is native or paper. */
flashoptim_status flashoptim_scale_count(int32_t format, const flashoptim_tensor* values, size_t* count);
/** Encodes a moment, rounding to nearest. Buffers must not overlap.
   @param format      native or paper
   @param moment      flashoptim_moment
   @param values      dense fp32 tensor; the second moment itself, not its root
   @param codes       one byte per element, in the same order
   @param scales      receives the scales
   @param scale_count number of scales, from flashoptim_scale_count */
flashoptim_status flashoptim_quantize_moment(int32_t format, int32_t moment, const flashoptim_tensor* values,
                                             void* codes, uint16_t* scales, size_t scale_count);
/** Decodes a moment into the memory of `values`: the reverse of flashoptim_quantize_moment. */
flashoptim_status flashoptim_dequantize_moment(int32_t format, int32_t moment, const void* codes,
                                               const uint16_t* scales, size_t scale_count,
                                               const flashoptim_tensor* values);
/** Splits master weights into stored weights and corrections. Buffers of 16-bit weights must not overlap.
   @param format             native or paper
   @param dtype              of the stored weights
   @param master_weight_bits flashoptim_master_weight_bits
   @param count              number of elements of every buffer
   @param masters            fp32 weights
   @param weights            receives the stored weights
   @param corrections        receives int8 (24 bits) or int16 (32 bits); none for 0, 16 and fp32 weights */
flashoptim_status flashoptim_split_weights(int32_t format, int32_t dtype, int32_t master_weight_bits,
                                           size_t count, const float* masters, void* weights,
                                           void* corrections);
/** Joins stored weights and corrections to master weights: the reverse of flashoptim_split_weights. */
flashoptim_status flashoptim_join_weights(int32_t format, int32_t dtype, int32_t master_weight_bits,
                                          size_t count, const void* weights, const void* corrections,
                                          float* masters);

#ifdef __cplusplus
}
#endif
