// The fused step of a list of tensors over buffers that the caller owns: what every optimizer of the project stands on.
// Most programs want optimizer.h, which owns its buffers; bindings to frameworks use this header.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashoptim/dtype.h"
#include "flashoptim/layout.h"
#include "flashoptim/rule/hyperparameters.h"

namespace flashoptim {

/// Number format of the moments and of the weights' corrections.
enum class Format : std::uint8_t {
    kNative,   ///< 8-bit square-law codes, sticky bfloat16 scales, dither, integer weight split. The default.
    kPaper,    ///< That of arXiv 2602.23349 and its authors' package.
    kFloat32,  ///< Uncompressed moments; weights as in the native format.
};

/// "SGD", "SGDW", "Adam", "AdamW", "Lion", and "native", "paper", "fp32": as saved files spell them.
std::string_view name_of(Rule rule);
std::string_view name_of(Format format);
/// The way back; nothing for a name that is not exactly one of these.
std::optional<Rule> rule_named(std::string_view name);
std::optional<Format> format_named(std::string_view name);

/// What to do with gradients that are NaN, Inf or at least 2^48 (after scaling and the L2 term).
enum class NonFinite : std::uint8_t {
    kSkipElement,  ///< The element keeps its weight and moments and is counted. The default.
    kSkipStep,     ///< If any gradient of the call is bad nothing changes, no step count advances.
    kError,        ///< The same, and NonFiniteError is thrown.
};

/// How a parameter is to be stored.
struct StorageOptions {
    Format format = Format::kNative;
    /// Bits of the master weight over 16-bit weights: 24 or 32 with a correction, 16 without (dithered rounding; not in the
    /// paper's format), 0 without (round to nearest even). float32 weights have no correction whatever is said here.
    int master_weight_bits = 24;
    /// false keeps the moments in fp32 whatever the format.
    bool quantize = true;
    /// The native format keeps the moments of smaller tensors in fp32 (counted in the whole tensor).
    std::int64_t min_quantized_numel = kDefaultMinQuantizedNumel;
    std::int64_t min_quantized_numel_1d = kDefaultMinQuantizedNumel1d;
};

/// One state buffer: `count` elements of `dtype`; count 0 where the storage has no such buffer.
struct BufferPlan {
    DType dtype = DType::kFloat32;
    std::int64_t count = 0;
    [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(count) * size_of(dtype); }
    bool operator==(const BufferPlan&) const = default;
};

enum class MomentStorage : std::uint8_t { kNative, kPaper, kFloat32 };

/// Which buffers a parameter has and how they are read. Buffers of elements lie in the weight's memory order; scales are
/// ordered by row, then by group in the row (`paper`: by groups of 32 in memory order).
struct StoragePlan {
    DType weight_dtype = DType::kFloat32;
    int master_weight_bits = 0;     // 0 also for float32 weights
    bool paper_arithmetic = false;  // the paper's correction and its order of operations
    MomentStorage moments = MomentStorage::kFloat32;
    BufferPlan correction;
    BufferPlan first, first_scales;
    BufferPlan second, second_scales;
    bool operator==(const StoragePlan&) const = default;
};

/// Plans the buffers of a parameter. SGD without momentum has no moments.
/// @throws InvalidArgument for a weight that is not float32, bfloat16 or float16, bits that are not 0, 16, 24, 32 (`paper`: 0, 24, 32),
///         or a vector that is cut inside a group of 32 whose `native` moments are quantized.
StoragePlan plan_storage(Rule rule, const Hyperparameters& hyperparameters, const StorageOptions& options,
                         DType weight_dtype, const Layout& layout, std::string_view name = "tensor");

/// The caller's buffers, each as its plan says; zero-filled before the first step. Pointers may be null where count is 0.
struct StateBuffers {
    void* correction = nullptr;
    void* first = nullptr;
    void* first_scales = nullptr;
    void* second = nullptr;
    void* second_scales = nullptr;
};

/// One tensor of a step. The weight, its state and its gradient lie in the same memory order.
struct StepItem {
    const Layout* layout = nullptr;
    StoragePlan plan;
    void* weight = nullptr;
    StateBuffers state;
    const void* gradient = nullptr;
    DType gradient_dtype = DType::kFloat32;
    float gradient_factor = 1.0F;  // 1/loss scale times clip coefficient; applied as gradients are read
    Rule rule = Rule::kAdamW;
    Hyperparameters hyperparameters;
    std::int64_t step = 1;           // the step count that this step makes it: 1 in the first
    bool has_momentum = true;        // SGD: false in the first step that fills the momentum buffer
    bool check_gradient = true;      // `paper` only: false takes every gradient as it is
    std::uint64_t bad_elements = 0;  // out: elements that were skipped
};

/// Where the step runs. Results do not depend on it.
enum class Backend : std::uint8_t {
    kAutomatic,   ///< FLASHOPTIM_BACKEND if set, else the fastest that this processor runs.
    kScalar,      ///< The reference, one element at a time.
    kPortable,    ///< The compiler's own vectors at the platform's baseline.
    kAvx2,        ///< x86-64-v3: AVX2, FMA, F16C, BMI, BMI2, LZCNT, MOVBE and what comes before them.
    kAvx512,      ///< x86-64-v4: AVX-512 F, BW, CD, DQ, VL beside it.
    kAvx512Vbmi,  ///< The same with VBMI.
    kNeon,        ///< 64-bit ARM.
};

/// "scalar", "portable", ... ; the names that FLASHOPTIM_BACKEND takes.
std::string_view name_of(Backend backend);
/// The backends that this build has and this processor runs, the fastest last.
std::vector<Backend> available_backends();

struct Workspace;

/// How many threads a caller's steps may use. All pools of a process share its worker threads, which are started when a
/// step first wants them and are kept until the process ends: any number of optimizers costs no more threads than one. There are
/// as many workers as the process may use CPUs, less one, or as the largest pool asks for, but never more than 1023; what cannot be
/// started is done without, and tried again by the next call.
///
/// Pools serve several threads at once, each with the workers that are idle. One pool serves one caller at a
/// time: a call made while it is busy, from inside one of its own jobs or from inside an OpenMP parallel
/// region runs on the calling thread alone. In a child after fork() workers are started anew.
class ThreadPool {
public:
    /// `threads` in all, the caller's included. 0: OMP_NUM_THREADS if set, else as many as the process may use CPUs by its
    /// affinity and by the CPU quotas of its control groups (v1 and v2; rounded up), as they are when the pool is made. A
    /// caller that is later confined to fewer CPUs uses no more than those.
    /// @throws InvalidArgument for a negative number.
    explicit ThreadPool(int threads = 0);
    ~ThreadPool();
    ThreadPool(ThreadPool&&) noexcept;
    ThreadPool& operator=(ThreadPool&&) noexcept;

    [[nodiscard]] int threads() const;
    /// Calls job(context, n) for each n in [0, jobs), in any order and on any thread, each in the default floating-point mode;
    /// returns when all are done. Jobs must not throw.
    void run(std::int64_t jobs, void (*job)(void* context, std::int64_t n), void* context);

private:
    struct Impl;
    /// The right to the workers and the workspace, if nobody else has it.
    class Lease {
    public:
        explicit Lease(ThreadPool& pool);
        ~Lease();
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        [[nodiscard]] Workspace* workspace() const;

    private:
        friend class ThreadPool;
        Impl* impl_ = nullptr;
        int process_;  // that of the thread that got it
    };
    friend struct StepRun;
    static void run_jobs(const Lease& lease, std::int64_t jobs, void (*job)(void* context, std::int64_t n),
                         void* context);

    std::unique_ptr<Impl> impl_;
};

/// One step of every item; fills bad_elements and returns their sum. Bits do not depend on threads, backend or the cut of
/// tensors. Where it throws, nothing was stepped.
/// @throws InvalidArgument that names the item for what cannot be stepped: no layout, a step count below 1, a buffer that is
///         null where its plan has one, an address that is not a multiple of its element's size; std::bad_alloc. So do the next two.
std::uint64_t step(std::span<StepItem> items, ThreadPool& pool, Backend backend = Backend::kAutomatic);

/// Counts bad gradients (bad_elements of each item) and changes nothing else; returns their sum.
std::uint64_t count_bad_gradients(std::span<StepItem> items, ThreadPool& pool,
                                  Backend backend = Backend::kAutomatic);

/// Euclidean norm of all gradients times their factor, in double; bad elements are left out. Sums are formed in blocks fixed
/// by element index and added in index order: the same bits for any number of threads and any backend.
double grad_norm(std::span<const StepItem> items, ThreadPool& pool, Backend backend = Backend::kAutomatic);

}  // namespace flashoptim

#endif
