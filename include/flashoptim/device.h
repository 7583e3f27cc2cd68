// The interface of a device whose memory holds weights, gradients and state. flashoptim::cuda::CudaDevice
// (cuda_device.h) implements it; the core itself contains no device.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flashoptim/step.h"

namespace flashoptim {

/// Addresses of numbers in device memory. The device reads them when a step runs, so the host does not block.
/// Each may be null.
struct DeviceNumbers {
    const float* grad_scale = nullptr;        ///< loss scale: gradients are multiplied by 1 / *grad_scale
    const float* clip_coefficient = nullptr;  ///< gradients are multiplied by *clip_coefficient
    const float* found_inf = nullptr;         ///< if *found_inf is not 0, nothing is stepped
    /// Empty, or for each item a device counter of extra steps or null. step() increments it unless
    /// *found_inf is set. The step count is item.step + *counter. With a counter, SGD's momentum buffer
    /// counts as filled after the first step that was not skipped.
    std::span<std::int64_t* const> steps_done{};
};

/// 1 / *grad_scale times *clip_coefficient, each where it is not null, for numbers in host memory. It has the
/// bits of the factor that a device applies.
[[nodiscard]] float factor_of(const DeviceNumbers& numbers);

/// Where the norm of gradients is written in device memory.
struct DeviceNorm {
    double* norm = nullptr;             ///< receives the norm
    float* clip_coefficient = nullptr;  ///< if not null, receives min(1, max_norm / (norm + 1e-6))
    double max_norm = 0.0;              ///< for clip_coefficient
};

/// Steps lists of tensors in device memory. It keeps the device's copy of the last lists, so that a list that
/// repeats is not uploaded again. Items are those of step.h with buffers and gradients on the device. Serves
/// one thread at a time.
class DeviceStepper {
public:
    virtual ~DeviceStepper() = default;

    /// Enqueues flashoptim::step and returns at once. Bad elements are added to counters that the device
    /// keeps for the list `list`; StepItem::bad_elements does not change.
    /// @throws InvalidArgument while a CUDA graph is captured: its replays would repeat item.step and the
    ///         learning rate.
    virtual void step(std::span<const StepItem> items, std::size_t list, const DeviceNumbers& numbers) = 0;
    /// Adds to counts[n] the bad elements of item n of `list` since the last call of collect(). Blocks. Until
    /// then no other list may use this number.
    virtual void collect(std::size_t list, std::span<std::uint64_t> counts) = 0;
    /// flashoptim::count_bad_gradients. Blocks.
    virtual std::uint64_t count_bad_gradients(std::span<StepItem> items, const DeviceNumbers& numbers) = 0;
    /// Enqueues flashoptim::grad_norm of the gradients times 1 / *grad_scale.
    virtual void grad_norm(std::span<const StepItem> items, const DeviceNumbers& numbers,
                           const DeviceNorm& to) = 0;
};

/// A stepper for lists that change from step to step. `Key` identifies a tensor to its owner. `add(key,
/// count)` receives the bad elements that the device has counted for a tensor.
template <class Key>
class CountingStepper {
public:
    /// Takes over the stepper.
    explicit CountingStepper(std::unique_ptr<DeviceStepper> stepper) : stepper_(std::move(stepper)) {}

    DeviceStepper& operator*() const { return *stepper_; }        ///< the stepper
    DeviceStepper* operator->() const { return stepper_.get(); }  ///< the stepper

    /// Steps items; keys[n] identifies items[n]. Blocks only after many different lists without a collect().
    template <class Add>
    void step(std::span<const StepItem> items, const std::vector<Key>& keys, Add add,
              const DeviceNumbers& numbers = {}) {
        auto place = std::find(lists_.begin(), lists_.end(), keys);
        if (place == lists_.end()) {
            if (lists_.size() == kMaxLists) collect(add);
            place = lists_.insert(lists_.end(), keys);
        }
        stepper_->step(items, static_cast<std::size_t>(place - lists_.begin()), numbers);
    }
    /// Passes all counts to `add`. Blocks, unless there was no step since the last call.
    template <class Add>
    void collect(Add add) {
        for (std::size_t list = 0; list < lists_.size(); ++list) {
            std::vector<std::uint64_t> counts(lists_[list].size());
            stepper_->collect(list, counts);
            for (std::size_t n = 0; n < counts.size(); ++n) add(lists_[list][n], counts[n]);
        }
        lists_.clear();
    }

private:
    // Two networks that alternate need two lists. A mixture of experts, of which some are idle, may need a
    // new list in almost every step.
    static constexpr std::size_t kMaxLists = 64;

    std::unique_ptr<DeviceStepper> stepper_;
    std::vector<std::vector<Key>> lists_;
};

/// Memory of a device and work on it, in the order of the calls. Serves one thread at a time and any number
/// of optimizers.
class Device {
public:
    virtual ~Device() = default;

    /// Allocates zeroed device memory.
    /// @throws Error if there is not enough.
    virtual std::shared_ptr<std::byte> allocate(std::size_t bytes) = 0;
    /// Copies device memory to host memory after all earlier work. Blocks.
    virtual void copy_to_host(void* to, const void* from, std::size_t bytes) = 0;
    /// Copies host memory to device memory. `from` may be reused when the call returns.
    virtual void copy_from_host(void* to, const void* from, std::size_t bytes) = 0;
    /// Sets device memory to zero.
    virtual void clear(void* data, std::size_t bytes) = 0;
    /// Checks that work on the device can read and write the memory at `data`. `name` is used in the message.
    /// @throws InvalidArgument if it cannot.
    virtual void check_memory(const void* data, const std::string& name) = 0;
    /// Makes a stepper. It may outlive the device object.
    virtual std::unique_ptr<DeviceStepper> stepper() = 0;
};

}  // namespace flashoptim

#endif
