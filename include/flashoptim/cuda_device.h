// A CUDA device for the framework-free optimizers: their weights, gradients and state in its memory, their steps on its stream.
//
//     flashoptim::OptimizerOptions options;
//     options.device = std::make_shared<flashoptim::cuda::Device>(0, stream);
//     flashoptim::AdamW optimizer({}, options);
//     optimizer.add_parameter({weight_on_device, flashoptim::DType::kBFloat16, {rows, columns}});
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <memory>

#include "flashoptim/cuda.h"
#include "flashoptim/device.h"

namespace flashoptim::cuda {

struct DeviceQueue;

/// All work is enqueued on one stream of one device, whatever device is current.
class Device final : public flashoptim::Device {
public:
    /// `stream` is a cudaStream_t of the device; null is the default stream. It must outlive the optimizers of the device, or
    /// be changed. @throws Error for a device that does not exist.
    explicit Device(int device = 0, void* stream = nullptr);
    ~Device() override;
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    [[nodiscard]] int index() const;
    [[nodiscard]] void* stream() const;
    /// For all that follows. What is under way on the former stream must come before it: the caller sees to that, as with every
    /// other use of his tensors on two streams.
    void set_stream(void* stream);

    std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
    void copy_to_host(void* to, const void* from, std::size_t bytes) override;
    void copy_from_host(void* to, const void* from, std::size_t bytes) override;
    void clear(void* data, std::size_t bytes) override;
    /// Refuses memory of the host that is not registered with CUDA, and memory of another device.
    void check_memory(const void* data, const std::string& name) override;
    std::unique_ptr<DeviceStepper> stepper() override;

private:
    std::shared_ptr<DeviceQueue> queue_;
};

}  // namespace flashoptim::cuda

#endif
