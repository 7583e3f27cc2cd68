// The fused step of a list of tensors over buffers that the caller owns. Every optimizer of the project calls
// it. Most programs want optimizer.h, which owns its buffers. Bindings to frameworks use this header.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashoptim/dtype.h"
#include "flashoptim/layout.h"
#include "flashoptim/numeric/compiler.h"
#include "flashoptim/rule/rules.h"

namespace flashoptim {

/// Number format of the moments and of the weights' corrections.
enum class Format : std::uint8_t {
    kNative,   ///< 8-bit square-law codes, sticky bfloat16 scales, dither, integer weight split. The default.
    kPaper,    ///< The format of arXiv 2602.23349 and of its authors' package.
    kFloat32,  ///< Uncompressed moments. Weights are stored as in the native format.
};

/// The name of a rule as saved files spell it: "SGD", "AdamW", ...; "unknown" for what is no enumerator.
std::string_view name_of(Rule rule);
/// The name of a format as saved files spell it: "native", "paper" or "fp32".
std::string_view name_of(Format format);
/// The rule of that name. Empty for any other text; upper and lower case differ.
std::optional<Rule> rule_named(std::string_view name);
/// The format of that name. Empty for any other text; upper and lower case differ.
std::optional<Format> format_named(std::string_view name);

/// What a step does with a bad gradient. A gradient is bad if, after scaling and the L2 term, it is NaN, Inf
/// or at least 2^48 in magnitude.
enum class NonFinite : std::uint8_t {
    kSkipElement,  ///< The element keeps its weight and moments. It is counted. The default.
    kSkipStep,     ///< If any gradient is bad, nothing changes and no step count advances.
    kError,        ///< As kSkipStep, and NonFiniteError is thrown.
};

/// How a parameter is stored.
struct StorageOptions {
    /// Number format of the moments and of the weights' corrections.
    Format format = Format::kNative;
    /// Bits of the master weight over a 16-bit weight. 24 and 32 store a correction of 8 and 16 bits. 16
    /// stores none and rounds the weight with dither (not in the paper's format). 0 stores none and rounds to
    /// nearest even. float32 weights have no correction, whatever this value is.
    int master_weight_bits = 24;
    /// false keeps the moments in fp32, whatever the format.
    bool quantize = true;
    /// Native format: tensors of fewer elements keep fp32 moments. A shard counts the elements of its whole
    /// tensor.
    std::int64_t min_quantized_numel = kDefaultMinQuantizedNumel;
    /// The same limit for tensors of one dimension.
    std::int64_t min_quantized_numel_1d = kDefaultMinQuantizedNumel1d;
};

/// One state buffer: `count` elements of `dtype`; count 0 where the storage has no such buffer.
struct BufferPlan {
    DType dtype = DType::kFloat32;
    std::int64_t count = 0;
    /// Size of the buffer.
    [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(count) * size_of(dtype); }
    bool operator==(const BufferPlan&) const = default;
};

enum class MomentStorage : std::uint8_t { kNative, kPaper, kFloat32 };

/// The buffers of one moment of a tensor.
struct MomentPlan {
    BufferPlan codes;   ///< 8-bit codes or the values themselves, one per element
    BufferPlan scales;  ///< one per group; none if the values themselves are stored
};
/// How a moment of this kind is stored. Native: 8-bit codes with scales, bfloat16 for a slow mean, and the
/// weight's dtype for the last gradient.
MomentPlan plan_moment(MomentKind kind, MomentStorage storage, const Layout& layout, DType weight_dtype);

// The state of a parameter is a list of buffers. A buffer is identified by its place in the list: first the
// weight's correction, then for each moment of the rule, in the order of the table of rules, its codes (or
// fp32 values) and its scales.

/// The number of places of a state.
constexpr int kMaxBuffers = 1 + 2 * kMaxMoments;
/// The place of the weight's correction.
constexpr int kCorrectionPlace = 0;
/// The place of a moment's codes.
FLASHOPTIM_INLINE constexpr int codes_place(int moment) { return 1 + 2 * moment; }
/// The place of a moment's scales.
FLASHOPTIM_INLINE constexpr int scales_place(int moment) { return 2 + 2 * moment; }
/// The number of the moment whose codes or scales are at a place. The place is not kCorrectionPlace.
constexpr int moment_of_place(int place) { return (place - 1) / 2; }
/// Whether the buffer at a place has one element per group; the others have one per element of the weight.
constexpr bool is_scales_place(int place) { return place > 0 && place % 2 == 0; }
/// The name of a buffer in saved files and in torch's state: "error_bits", or a name of the table of rules.
/// Empty if the rule has no such buffer.
std::string_view buffer_name(Rule rule, int place);
/// The place of the buffer of this name; nothing if the rule has none.
std::optional<int> buffer_place(Rule rule, std::string_view name);

/// The buffers of a parameter and their format. Buffers with one element per weight lie in the weight's
/// memory order. Scales are ordered by row, then by group in the row (`paper`: by groups of 32 in memory
/// order).
struct StoragePlan {
    DType weight_dtype = DType::kFloat32;
    int master_weight_bits = 0;     ///< 0 also for float32 weights
    bool paper_arithmetic = false;  ///< the paper's correction and order of operations
    MomentStorage moments = MomentStorage::kFloat32;
    BufferPlan buffers[kMaxBuffers];  // by place

    /// The plan of the corrections.
    [[nodiscard]] FLASHOPTIM_INLINE const BufferPlan& correction() const { return buffers[kCorrectionPlace]; }
    /// The plan of a moment's codes or fp32 values; `moment` is less than kMaxMoments.
    [[nodiscard]] FLASHOPTIM_INLINE const BufferPlan& codes(int moment) const {
        return buffers[codes_place(moment)];
    }
    /// The plan of a moment's scales; `moment` is less than kMaxMoments.
    [[nodiscard]] FLASHOPTIM_INLINE const BufferPlan& scales(int moment) const {
        return buffers[scales_place(moment)];
    }
    /// The plan of the buffer at a place, which is less than kMaxBuffers.
    [[nodiscard]] FLASHOPTIM_INLINE const BufferPlan& at(int place) const { return buffers[place]; }
    /// As above, for changes.
    [[nodiscard]] FLASHOPTIM_INLINE BufferPlan& at(int place) { return buffers[place]; }
    bool operator==(const StoragePlan&) const = default;
};

/// Plans the buffers of a parameter. A moment that the hyperparameters do not need is left out: SGD without
/// momentum has none.
/// @throws InvalidArgument for a weight that is not float32, bfloat16 or float16, bits that are not 0, 16,
///         24, 32 (`paper`: 0, 24, 32), a rule that has no `paper` format, or a vector that is cut inside a
///         group of 32 whose `native` moments are quantized.
StoragePlan plan_storage(Rule rule, const Hyperparameters& hyperparameters, const StorageOptions& options,
                         DType weight_dtype, const Layout& layout, std::string_view name = "tensor");

/// The addresses of the caller's buffers, which are not owned. Each buffer has the size and dtype of its plan
/// and is filled with zeros before the first step. The address may be null if the plan's count is 0.
struct StateBuffers {
    std::array<void*, kMaxBuffers> buffers{};  // by place

    /// The address of the buffer at a place, which is less than kMaxBuffers.
    [[nodiscard]] void* at(int place) const { return buffers[static_cast<std::size_t>(place)]; }
    /// As above, for changes.
    [[nodiscard]] void*& at(int place) { return buffers[static_cast<std::size_t>(place)]; }
};

/// The scalars of apply_update(): w = w * weight_factor - learning_rate * direction.
struct UpdateScalars {
    float learning_rate = 0.0F;  ///< of the step, with the rule's bias correction folded in
    float weight_factor = 1.0F;  ///< decoupled weight decay; 1 if there is none
    bool operator==(const UpdateScalars&) const = default;
};

/// One tensor of a step. The weight, its state, its gradient and its direction lie in the same memory order.
/// All pointers are borrowed: until the call returns, or on a device until the enqueued work is done. The
/// layout is read during the call only.
struct StepItem {
    const Layout* layout = nullptr;
    StoragePlan plan;
    void* weight = nullptr;
    StateBuffers state;
    const void* gradient = nullptr;
    DType gradient_dtype = DType::kFloat32;
    float gradient_factor = 1.0F;  ///< 1/loss scale times clip coefficient; applied as gradients are read
    Rule rule = Rule::kAdamW;
    Hyperparameters hyperparameters;
    std::int64_t step = 1;  ///< step count after this step: 1 in the first
    /// false in the step that first fills SGD's momentum buffer or Adan's last gradient.
    bool has_momentum = true;
    bool check_gradient = true;      ///< `paper` only: false takes every gradient as it is
    std::uint64_t bad_elements = 0;  ///< result: number of skipped elements
    /// For a step in two passes: one float32 or bfloat16 per element. It may be the gradient's memory if both
    /// have the same dtype.
    void* direction = nullptr;
    DType direction_dtype = DType::kFloat32;
    UpdateScalars update;  ///< what update_moments() returns and apply_update() takes
};

/// The instruction set of a step on the CPU. All backends give the same bits.
enum class Backend : std::uint8_t {
    kAutomatic,   ///< The one that FLASHOPTIM_BACKEND names, else the fastest that this processor runs.
    kScalar,      ///< The reference kernel, one element at a time.
    kPortable,    ///< The compiler's vectors for the platform's baseline.
    kAvx2,        ///< x86-64-v3: AVX2, FMA, F16C, BMI, BMI2, LZCNT and MOVBE.
    kAvx512,      ///< x86-64-v4: AVX-512 F, BW, CD, DQ and VL.
    kAvx512Vbmi,  ///< As kAvx512, with VBMI.
    kNeon,        ///< 64-bit ARM.
};

/// The name that FLASHOPTIM_BACKEND takes: "scalar", "portable", "avx2", ...
std::string_view name_of(Backend backend);
/// The backends of this build that this processor runs, the fastest last.
std::vector<Backend> available_backends();

struct Workspace;

/// The number of threads that a caller's steps may use.
///
/// All pools of a process share its worker threads, so that many optimizers need no more threads than one.
/// Workers are started when a step first needs them and live until the process ends. Their number is the
/// number of usable CPUs less one, or what the largest pool asks for, and never more than 1023. If a worker
/// cannot be started, the step uses fewer threads, and the next call tries again.
///
/// Thread-safety: different pools may be used in different threads at once; each call takes the workers that
/// are idle. One pool serves one caller at a time. A call made while the pool is busy, from inside one of its
/// own jobs, or from inside an OpenMP parallel region runs on the calling thread alone. After fork() the
/// child starts its own workers.
class ThreadPool {
public:
    /// @param threads all threads of a step, including the caller's. 0 means OMP_NUM_THREADS if it is set,
    ///         else the number of usable CPUs: those of the process's affinity, limited by the CPU quotas of
    ///         its control groups (v1 and v2, rounded up). Both are read when the pool is made. A caller that
    ///         is confined to fewer CPUs later uses no more than those.
    /// @throws InvalidArgument for a negative number.
    explicit ThreadPool(int threads = 0);
    ~ThreadPool();
    ThreadPool(ThreadPool&&) noexcept;
    ThreadPool& operator=(ThreadPool&&) noexcept;

    /// Threads of a step, including the caller's.
    [[nodiscard]] int threads() const;
    /// Calls job(context, n) for each n in [0, jobs) and returns when all are done. The order and the threads
    /// are not defined. Each job runs in the default floating-point mode. Jobs must not throw.
    void run(std::int64_t jobs, void (*job)(void* context, std::int64_t n), void* context);

private:
    struct Impl;
    /// The right to use the workers and the workspace, unless another caller has it.
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
        int process_;  ///< id of the process that took it
    };
    friend struct StepRun;
    static void run_jobs(const Lease& lease, std::int64_t jobs, void (*job)(void* context, std::int64_t n),
                         void* context);

    std::unique_ptr<Impl> impl_;
};

/// Makes one step of every item, as kSkipElement says. The bits do not depend on the threads, the backend or
/// how a tensor is cut into shards.
/// @return the number of bad elements; StepItem::bad_elements has the number of each item
/// @throws InvalidArgument names the item: it has no layout, a step count below 1, a null pointer for a
///         buffer of its plan, or an address that is not a multiple of the element's size. Nothing was
///         stepped.
/// @throws std::bad_alloc if there is no memory. Nothing was stepped.
std::uint64_t step(std::span<StepItem> items, ThreadPool& pool, Backend backend = Backend::kAutomatic);

/// The first of two passes of a step: computes new moments and the direction of the update. Between the
/// passes a caller may replace the direction, as matrix rules do (Muon, Shampoo).
///
/// Writes StepItem::direction and StepItem::update. The direction is what the rule subtracts from the weight
/// at the learning rate StepItem::update.learning_rate, clamped as the fused step clamps it; a bfloat16 one
/// is rounded to nearest even. Weights and corrections are read only where decay is coupled and not 0, else
/// they may be null. A bad element keeps its moments and has the direction NaN.
///
/// With a float32 direction, update_moments() and then apply_update() give the bits of step(). There is one
/// exception: where weight times weight_factor overflows and the new weight is NaN for that reason, step()
/// keeps the moments too. Threads and thread-safety are as in step().
/// @return the number of bad elements; StepItem::bad_elements has the number of each item
/// @throws InvalidArgument as step() does, for a direction that is null, misaligned or of another dtype, and
///         for a plan in the paper's order of operations, which has no step in two passes. Nothing was
///         changed.
/// @throws std::bad_alloc if there is no memory. Nothing was changed.
std::uint64_t update_moments(std::span<StepItem> items, ThreadPool& pool,
                             Backend backend = Backend::kAutomatic);

/// The second pass: w = w * weight_factor - learning_rate * direction, with the scalars of StepItem::update,
/// rounded as the fused step StepItem::step rounds it. Gradients and moments are not used and may be null. An
/// element whose direction or new weight is NaN keeps its weight and is counted.
/// @return the number of elements that kept their weights so; StepItem::bad_elements has that of each item
/// @throws InvalidArgument, std::bad_alloc as update_moments() does. Nothing was changed.
std::uint64_t apply_update(std::span<StepItem> items, ThreadPool& pool,
                           Backend backend = Backend::kAutomatic);

/// Counts the bad gradients into StepItem::bad_elements. Nothing else changes.
/// @return the sum of the counts
/// @throws InvalidArgument or std::bad_alloc, as step() does
std::uint64_t count_bad_gradients(std::span<StepItem> items, ThreadPool& pool,
                                  Backend backend = Backend::kAutomatic);

/// The Euclidean norm of all gradients times their factor, in double. Bad elements are left out. The sums of
/// blocks that are fixed by the element index are added in index order, so any number of threads and any
/// backend give the same bits.
/// @throws InvalidArgument or std::bad_alloc, as step() does
double grad_norm(std::span<const StepItem> items, ThreadPool& pool, Backend backend = Backend::kAutomatic);

}  // namespace flashoptim

#endif
