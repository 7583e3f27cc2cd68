// The fused step on NVIDIA GPUs: a list of tensors in device memory, stepped by one launch for each kind of storage on the caller's
// stream, with the bits of flashoptim::step. Link flashoptim::cuda, which exists where the library was built with nvcc.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <memory>
#include <span>

#include "flashoptim/error.h"
#include "flashoptim/step.h"

namespace flashoptim::cuda {

/// What the CUDA runtime or driver refused; names the call and CUDA's own error.
class Error : public flashoptim::Error {
    using flashoptim::Error::Error;
};

/// CUDA devices that this process can use; 0 where there is no driver.
int device_count();

/// Values in device memory of one item, in the place of those of the whole list (DeviceValues). Each may be null.
struct ItemValues {
    std::int64_t* steps_done = nullptr;  // items may share it; it is advanced once
    const double* learning_rate = nullptr;
    /// SGD, where has_momentum is false: steps of the item at which its momentum buffer is still to be filled. The step that comes
    /// upon more finds it filled.
    std::int64_t unfilled_at = 0;

    bool operator==(const ItemValues&) const = default;
};

/// Values in device memory that take the place of values on the host, read when the step runs: so a step needs no synchronisation
/// with the host and can be captured in a CUDA graph. Each may be null.
struct DeviceValues {
    /// Steps that were done before; added to each item's `step` (so 1 there for a tensor that was in the list from the first
    /// step on). The step advances it by 1 unless it was skipped. With it SGD's momentum buffer is taken for filled after the
    /// first step that was not skipped, whatever has_momentum says.
    std::int64_t* steps_done = nullptr;
    /// In the place of every item's hyperparameters.learning_rate.
    const double* learning_rate = nullptr;
    /// Loss scale: gradients are multiplied by 1 / *grad_scale, as fp32.
    const float* grad_scale = nullptr;
    /// Gradients are multiplied by it too (see StepPlan::grad_norm).
    const float* clip_coefficient = nullptr;
    /// torch.amp.GradScaler's: not 0 skips the step.
    const float* found_inf = nullptr;
    /// Empty, or values of each item alone. Read during the call only; the memory that they name is read when the step runs.
    std::span<const ItemValues> items{};
    /// One for each item: elements that are skipped are added to these, in the place of counts of the plan's own that begin at 0
    /// in each step.
    std::uint64_t* bad_elements = nullptr;
};

struct StepOptions {
    /// kSkipStep and kError count the bad gradients of all items before anything is written; if there are any, nothing is. Neither
    /// waits for the count: StepPlan::was_skipped and StepPlan::check do.
    NonFinite nonfinite = NonFinite::kSkipElement;
    DeviceValues device;
};

/// What a list of tensors needs on one device: descriptors and chunk list, uploaded only when they change, and counters.
///
/// All calls enqueue on `stream` (a cudaStream_t; null is the default stream) of the plan's device, whatever
/// device is current, and return at once except where they say that they wait. A plan serves one thread and one
/// stream at a time: what it enqueued on one comes before what it enqueues on another, as is so for the tensors
/// anyway. Memory grows with the list and is allocated by the first call with a longer one; kernels are loaded by
/// the first call that needs them. Every call throws Error for what CUDA refuses; for memory and for the load of kernels
/// before a kernel is enqueued, so that the call may be made again.
///
/// A stream may be captured into a CUDA graph. What the graph reads of the plan is left as it is from then on,
/// whatever other lists the plan steps later, and given back with the plan or by release_captured: the plan must
/// outlive the graph. A list that was not the last one before the capture is uploaded beside it, on a stream of
/// the plan's own for which the call waits.
///
/// A call makes the plan's device current and then the former one again, unless CUDA is not in use there: that
/// would begin it. A plan that is never used begins nothing on its device. It may be destroyed while a stream is
/// captured.
class StepPlan {
public:
    explicit StepPlan(int device = 0);
    ~StepPlan();
    StepPlan(StepPlan&&) noexcept;
    StepPlan& operator=(StepPlan&&) noexcept;

    [[nodiscard]] int device() const;

    /// Uploads what has changed of the list since the last call, as `step` does itself.
    /// @throws InvalidArgument for a buffer that is null where its plan says it exists, or values.items of another length.
    void prepare(std::span<const StepItem> items, void* stream, const DeviceValues& values = {});

    /// One step of every item: flashoptim::step with buffers and gradients in memory of the device. Layouts are read during the
    /// call only. bad_elements is left alone; see StepPlan::bad_elements.
    void step(std::span<const StepItem> items, const StepOptions& options, void* stream);

    /// Counts bad gradients and changes nothing else; waits, returns their sum and writes those of each item into `counts`, which
    /// may be empty.
    std::uint64_t count_bad_gradients(std::span<const StepItem> items, const StepOptions& options,
                                      std::span<std::uint64_t> counts, void* stream);
    /// The same without waiting: the counts are left in device memory, see bad_gradients.
    void count_bad_gradients(std::span<const StepItem> items, const StepOptions& options, void* stream);

    /// The norm of all gradients times their factor and 1 / *grad_scale into *norm (device memory), with the bits of
    /// flashoptim::grad_norm. Where clip_coefficient is not null it becomes min(1, max_norm / (norm + 1e-6)), which a step takes.
    void grad_norm(std::span<const StepItem> items, const DeviceValues& values, double* norm, double max_norm,
                   float* clip_coefficient, void* stream);

    /// Elements that the last step skipped, of each item of its list, whatever was counted since; waits. Where it
    /// was given DeviceValues::bad_elements: those.
    void bad_elements(std::span<std::uint64_t> counts, void* stream) const;
    /// The same in device memory, without waiting; valid until a step with another list.
    [[nodiscard]] const std::uint64_t* bad_elements() const;
    /// What count_bad_gradients counted last, in device memory; valid until it counts in another list.
    [[nodiscard]] const std::uint64_t* bad_gradients() const;

    /// Gives back what captured graphs read: none of those that have a step, a count or a norm of the plan may run
    /// any more. Waits for the device. The bad elements of a step in one of them are forgotten.
    void release_captured();

    /// Whether the last step was skipped, by found_inf or by its policy, whatever was counted since; waits. The
    /// last may be one of a graph that was replayed.
    [[nodiscard]] bool was_skipped(void* stream) const;
    /// Waits. @throws NonFiniteError if the last step had bad gradients and the policy NonFinite::kError.
    void check(void* stream) const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace flashoptim::cuda

#endif
