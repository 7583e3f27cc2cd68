// The fused step on NVIDIA GPUs: steps a list of tensors in device memory on the caller's stream, with the
// bits of flashoptim::step. Link flashoptim::cuda, which exists if the library was built with nvcc.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <memory>
#include <span>

#include "flashoptim/error.h"
#include "flashoptim/step.h"

namespace flashoptim::cuda {

/// An error of the CUDA runtime or driver. The message names the call and CUDA's own error.
class CudaError : public flashoptim::Error {
    using flashoptim::Error::Error;
};

/// Number of CUDA devices that this process can use; 0 if there is no driver.
int device_count();

/// Addresses in device memory for one item. They replace those for the whole list (DeviceValues). Each may be
/// null.
struct ItemValues {
    /// Number of earlier steps. Items may share it; it is advanced once.
    std::int64_t* steps_done = nullptr;
    /// Replaces the item's hyperparameters.learning_rate.
    const double* learning_rate = nullptr;
    /// For SGD with has_momentum false: the value of *steps_done at which the momentum buffer is not filled
    /// yet. A step that finds a larger value uses the buffer.
    std::int64_t unfilled_at = 0;

    bool operator==(const ItemValues&) const = default;
};

/// Addresses of values in device memory, in place of values on the host. The device reads them when the step
/// runs. So a step needs no synchronization with the host and can be captured in a CUDA graph. Each may be
/// null.
struct DeviceValues {
    /// Number of earlier steps. The step count of an item is item.step + *steps_done, so item.step is 1 for a
    /// tensor that was in the list from the first step. A step advances it by 1 unless it is skipped. With
    /// it, SGD's momentum buffer counts as filled after the first step that was not skipped, whatever
    /// has_momentum says.
    std::int64_t* steps_done = nullptr;
    /// Replaces every item's hyperparameters.learning_rate.
    const double* learning_rate = nullptr;
    /// Loss scale: gradients are multiplied by 1 / *grad_scale, in fp32.
    const float* grad_scale = nullptr;
    /// Gradients are multiplied by *clip_coefficient (StepPlan::grad_norm computes it).
    const float* clip_coefficient = nullptr;
    /// If *found_inf is not 0 the step is skipped, as torch.amp.GradScaler asks for.
    const float* found_inf = nullptr;
    /// Empty, or values for each item. The span is read during the call; the device memory when the step
    /// runs.
    std::span<const ItemValues> items{};
    /// A counter for each item: the step adds its bad elements. Null: the plan's own counters, set to 0 in
    /// each step.
    std::uint64_t* bad_elements = nullptr;
};

/// Options of a step.
struct StepOptions {
    /// kSkipStep and kError count the bad gradients of all items first and write nothing if there are any.
    /// The call does not wait for the count; StepPlan::was_skipped and StepPlan::check do.
    NonFinite nonfinite = NonFinite::kSkipElement;
    /// Values in device memory.
    DeviceValues device;
};

/// The device's copy of a list of tensors (descriptors and chunk list, uploaded only when they change), and
/// its counters.
///
/// Streams: every call enqueues on `stream` of the plan's device, whatever device is current. A stream is a
/// cudaStream_t; null is the default stream. A call returns at once unless it says that it blocks.
///
/// Thread-safety: a plan serves one thread and one stream at a time. Work on a former stream must come before
/// work on the next one, as for the tensors themselves.
///
/// Memory grows with the list; the first call with a longer list allocates it. The first call that needs a
/// kernel loads it. Both happen before a kernel is enqueued, so a call that fails there may be repeated.
/// Every call throws CudaError for an error of CUDA.
///
/// CUDA graphs: a stream may be captured. The plan keeps what the graph reads, whatever other lists it steps
/// later, until it is destroyed or release_captured() is called. The plan must outlive the graph. A list that
/// is new in the capture is uploaded on a stream of the plan's own, and the call blocks for it.
///
/// Devices: a call makes the plan's device current and then the former one again, unless CUDA was not in use
/// on the former one. A plan that is never used does not initialize its device. It may be destroyed during a
/// capture.
class StepPlan {
public:
    /// Makes a plan for a device by its CUDA number. Nothing is allocated yet.
    explicit StepPlan(int device = 0);
    ~StepPlan();
    StepPlan(StepPlan&&) noexcept;
    StepPlan& operator=(StepPlan&&) noexcept;

    /// CUDA's number of the device.
    [[nodiscard]] int device() const;

    /// Uploads what has changed in the list since the last call. step() does this itself.
    /// @throws InvalidArgument for a null buffer of an item's plan, or values.items of another length.
    void prepare(std::span<const StepItem> items, void* stream, const DeviceValues& values = {});

    /// Enqueues one step of every item: flashoptim::step with buffers and gradients in device memory. Layouts
    /// are read during the call only. StepItem::bad_elements does not change; bad_elements() has the counts.
    void step(std::span<const StepItem> items, const StepOptions& options, void* stream);

    /// Counts bad gradients and changes nothing else. Blocks.
    /// @param items   the list
    /// @param options values in device memory
    /// @param counts  receives the count of each item; may be empty
    /// @param stream  stream of the device
    /// @return the sum of the counts
    std::uint64_t count_bad_gradients(std::span<const StepItem> items, const StepOptions& options,
                                      std::span<std::uint64_t> counts, void* stream);
    /// Counts bad gradients without blocking. The counts stay in device memory: bad_gradients().
    void count_bad_gradients(std::span<const StepItem> items, const StepOptions& options, void* stream);

    /// Enqueues the norm of all gradients times their factor and 1 / *grad_scale, with the bits of
    /// flashoptim::grad_norm.
    /// @param items            the list
    /// @param values           values in device memory
    /// @param norm             receives the norm, in device memory
    /// @param max_norm         for clip_coefficient
    /// @param clip_coefficient if not null, receives min(1, max_norm / (norm + 1e-6)) for a step
    /// @param stream           stream of the device
    void grad_norm(std::span<const StepItem> items, const DeviceValues& values, double* norm, double max_norm,
                   float* clip_coefficient, void* stream);

    /// Copies the bad elements of the last step, one count for each item of its list. If the step was given
    /// DeviceValues::bad_elements, copies those. Later counts and norms do not change them. Blocks.
    void bad_elements(std::span<std::uint64_t> counts, void* stream) const;
    /// The address of the same counts in device memory. Valid until a step of another list.
    [[nodiscard]] const std::uint64_t* bad_elements() const;
    /// The address of the last counts of count_bad_gradients() in device memory. Valid until it counts
    /// another list.
    [[nodiscard]] const std::uint64_t* bad_gradients() const;

    /// Frees what captured graphs read. No graph with a step, a count or a norm of this plan may run any
    /// more. Blocks. The bad elements of a step in such a graph are lost.
    void release_captured();

    /// Whether found_inf or the policy skipped the last step, which may have been a replay of a graph. Later
    /// counts and norms do not change the answer. Blocks.
    [[nodiscard]] bool was_skipped(void* stream) const;
    /// Blocks until the last step is done.
    /// @throws NonFiniteError if it had bad gradients under NonFinite::kError.
    void check(void* stream) const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace flashoptim::cuda

#endif
