// What an optimizer needs of a device whose memory holds weights, gradients and state in place of the host's. flashoptim::cuda::Device
// (cuda_device.h) is one; the core itself knows none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flashoptim/step.h"

namespace flashoptim {

/// Steps one list of tensors in memory of a device, and keeps from step to step what the device knows about the list. Items are those
/// of step.h with buffers and gradients on the device. Serves one thread at a time.
class DeviceStepper {
public:
    virtual ~DeviceStepper() = default;

    /// flashoptim::step, enqueued: returns at once. bad_elements of the items is left alone; see collect.
    virtual void step(std::span<const StepItem> items) = 0;
    /// Adds to counts[n] the elements of item n that step() skipped since the last call of collect. Waits. Between two calls
    /// the list must be the same.
    virtual void collect(std::span<std::uint64_t> counts) = 0;
    /// flashoptim::count_bad_gradients; waits.
    virtual std::uint64_t count_bad_gradients(std::span<StepItem> items) = 0;
    /// flashoptim::grad_norm; waits.
    virtual double grad_norm(std::span<const StepItem> items) = 0;
};

/// A stepper of a list that may change from step to step. `Key` is what its owner knows a tensor by; `add(key, count)` takes over
/// what the device has counted of it.
template <class Key>
class CountingStepper {
public:
    explicit CountingStepper(std::unique_ptr<DeviceStepper> stepper) : stepper_(std::move(stepper)) {}

    DeviceStepper& operator*() const { return *stepper_; }
    DeviceStepper* operator->() const { return stepper_.get(); }

    /// Steps items, which are those of `keys`. Waits only where it stepped others before.
    template <class Add>
    void step(std::span<const StepItem> items, std::vector<Key> keys, Add add) {
        if (keys != keys_) collect(add);
        stepper_->step(items);
        keys_ = std::move(keys);
    }
    /// Waits, unless there was no step since the last call.
    template <class Add>
    void collect(Add add) {
        std::vector<std::uint64_t> counts(keys_.size());
        if (!keys_.empty()) stepper_->collect(counts);
        for (std::size_t n = 0; n < counts.size(); ++n) add(keys_[n], counts[n]);
        keys_.clear();
    }

private:
    std::unique_ptr<DeviceStepper> stepper_;
    std::vector<Key> keys_;
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
