// What an optimizer needs of a device whose memory holds weights, gradients and state in place of the host's. flashoptim::cuda::Device
// (cuda_device.h) is one; the core itself knows none.
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

/// Numbers in memory of a device, read there when the work runs, so that nobody waits for them. Each may be null.
struct DeviceNumbers {
    const float* grad_scale = nullptr;        // loss scale: gradients are multiplied by 1 / *grad_scale
    const float* clip_coefficient = nullptr;  // and by this
    const float* found_inf = nullptr;         // not 0: nothing is stepped
    /// Empty, or for each item null or the steps that it has made beyond item.step - 1: step() adds 1, unless
    /// found_inf kept it back. With it SGD's momentum buffer is taken for filled after the first such step.
    std::span<std::int64_t* const> steps_done{};
};

/// 1 / *grad_scale times *clip_coefficient, each where it is not null, of numbers in memory of the host: with the bits that a device
/// multiplies gradients by.
[[nodiscard]] float factor_of(const DeviceNumbers& numbers);

/// Where a norm of gradients comes to lie in memory of a device.
struct DeviceNorm {
    double* norm = nullptr;
    float* clip_coefficient = nullptr;  // not null: min(1, max_norm / (norm + 1e-6))
    double max_norm = 0.0;
};

/// Steps lists of tensors in memory of a device, and keeps from step to step what the device knows about the last
/// lists. Items are those of step.h with buffers and gradients on the device. Serves one thread at a time.
class DeviceStepper {
public:
    virtual ~DeviceStepper() = default;

    /// flashoptim::step, enqueued: returns at once. bad_elements of the items is left alone: what is skipped is added
    /// to counters that the device keeps for the list with this number. @throws InvalidArgument while a CUDA graph is
    /// captured: its replays would repeat item.step and the learning rate.
    virtual void step(std::span<const StepItem> items, std::size_t list, const DeviceNumbers& numbers) = 0;
    /// Adds to counts[n] the elements of item n of the list that step() skipped since the last call of collect. Waits.
    /// Until then another list must not have the number.
    virtual void collect(std::size_t list, std::span<std::uint64_t> counts) = 0;
    /// flashoptim::count_bad_gradients; waits.
    virtual std::uint64_t count_bad_gradients(std::span<StepItem> items, const DeviceNumbers& numbers) = 0;
    /// flashoptim::grad_norm of the gradients times 1 / *grad_scale, enqueued.
    virtual void grad_norm(std::span<const StepItem> items, const DeviceNumbers& numbers,
                           const DeviceNorm& to) = 0;
};

/// A stepper of lists that change from step to step. `Key` is what its owner knows a tensor by; `add(key, count)` takes over
/// what the device has counted of it.
template <class Key>
class CountingStepper {
public:
    explicit CountingStepper(std::unique_ptr<DeviceStepper> stepper) : stepper_(std::move(stepper)) {}

    DeviceStepper& operator*() const { return *stepper_; }
    DeviceStepper* operator->() const { return stepper_.get(); }

    /// Steps items, which are those of `keys`. Waits only where it has stepped many different lists since it last collected.
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
    /// Waits, unless there was no step since the last call.
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
    // Two networks that take turns are two lists; experts of which some are idle make a new one in almost each step.
    static constexpr std::size_t kMaxLists = 64;

    std::unique_ptr<DeviceStepper> stepper_;
    std::vector<std::vector<Key>> lists_;
};

/// Memory of a device and work on it, in the order of the calls. Serves one thread at a time; may serve several optimizers.
class Device {
public:
    virtual ~Device() = default;

    /// Zeroed memory for anything that the core keeps. @throws Error if there is not enough.
    virtual std::shared_ptr<std::byte> allocate(std::size_t bytes) = 0;
    /// Waits for the work before.
    virtual void copy_to_host(void* to, const void* from, std::size_t bytes) = 0;
    /// `from` may be reused when it returns.
    virtual void copy_from_host(void* to, const void* from, std::size_t bytes) = 0;
    /// Sets bytes to zero.
    virtual void clear(void* data, std::size_t bytes) = 0;
    /// @throws InvalidArgument where work on the device cannot read and write the memory at `data`; `name` is what
    /// lies there.
    virtual void check_memory(const void* data, const std::string& name) = 0;
    /// For one list; it may outlive the device.
    virtual std::unique_ptr<DeviceStepper> stepper() = 0;
};

}  // namespace flashoptim

#endif
