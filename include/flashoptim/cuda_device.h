// A CUDA device for the framework-free optimizers. Weights, gradients and state lie in its memory; steps run
// on its stream.
//
//     flashoptim::OptimizerOptions options;
//     options.device = std::make_shared<flashoptim::cuda::CudaDevice>(0, stream);
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

/// A CUDA device and one of its streams. All work is enqueued on this stream, whatever device is current.
class CudaDevice final : public flashoptim::Device {
public:
    /// @param device CUDA's number of the device
    /// @param stream a cudaStream_t of the device; null is the default stream. It must outlive the optimizers
    ///         of the device, or be replaced by set_stream().
    /// @throws CudaError for a device that does not exist.
    explicit CudaDevice(int device = 0, void* stream = nullptr);
    ~CudaDevice() override;
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;

    /// CUDA's number of the device.
    [[nodiscard]] int index() const;
    /// The stream on which work is enqueued.
    [[nodiscard]] void* stream() const;
    /// Replaces the stream for all further work. The caller orders the work that is still running on the
    /// former stream before it, as for any other use of the tensors on two streams.
    void set_stream(void* stream);

    std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
    void copy_to_host(void* to, const void* from, std::size_t bytes) override;
    void copy_from_host(void* to, const void* from, std::size_t bytes) override;
    void clear(void* data, std::size_t bytes) override;
    /// Refuses host memory that is not registered with CUDA, and memory of another device.
    void check_memory(const void* data, const std::string& name) override;
    std::unique_ptr<DeviceStepper> stepper() override;

private:
    std::shared_ptr<DeviceQueue> queue_;
};

}  // namespace flashoptim::cuda

#endif
