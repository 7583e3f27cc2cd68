// The CUDA runtime as this backend uses it: errors as exceptions, the device that is current, what may be
// asked of a device before anything is done there.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace flashoptim::cuda {

/// @throws CudaError that names the call, what CUDA says and what to do.
void check_cuda(cudaError_t status, const char* call);

/// For a call whose failure changes nothing: left behind, the error would be found by the application
/// and taken for one of its own.
inline void ignore_failure(cudaError_t status) noexcept {
    if (status != cudaSuccess) (void)cudaGetLastError();
}

/// Does not begin to use the device. @throws CudaError, with the reason, where this process cannot use it.
void check_device(int device);

/// @throws InvalidArgument for memory that kernels on the device cannot use: of the host, unless it was
///         registered with CUDA, and of another device.
void check_memory(int device, const void* data, const std::string& name);

/// Makes a device current, and then the former one again. To make one current is to begin to use it,
/// which costs some 500 MB of its memory: a process for one GPU of several makes that GPU current
/// first, as everywhere with CUDA.
class CurrentDevice {
public:
    explicit CurrentDevice(int device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

private:
    int former_ = -1;
};

/// Lets this thread allocate, give back and wait while a stream is captured, its own or somebody else's.
class RelaxedCapture {
public:
    RelaxedCapture() noexcept { ignore_failure(cudaThreadExchangeStreamCaptureMode(&mode_)); }
    ~RelaxedCapture() { ignore_failure(cudaThreadExchangeStreamCaptureMode(&mode_)); }
    RelaxedCapture(const RelaxedCapture&) = delete;
    RelaxedCapture& operator=(const RelaxedCapture&) = delete;

private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

/// Where memory of a device is given back: on that device, and without disturbing a capture. Never throws.
class GivingBack {
public:
    explicit GivingBack(int device) noexcept;
    ~GivingBack();
    GivingBack(const GivingBack&) = delete;
    GivingBack& operator=(const GivingBack&) = delete;

private:
    RelaxedCapture relaxed_;
    int former_ = -1;
};

}  // namespace flashoptim::cuda
