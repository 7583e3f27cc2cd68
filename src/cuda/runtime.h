// Access to the CUDA runtime: errors as exceptions, the current device, and checks of a device before it is
// used.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace flashoptim::cuda {

/// @throws CudaError for a failed call. The message names the call, CUDA's error and the remedy.
void check_cuda(cudaError_t status, const char* call);

/// For a call whose failure does not matter. The error is cleared, because the application would otherwise
/// take it for one of its own calls.
inline void ignore_failure(cudaError_t status) noexcept {
    if (status != cudaSuccess) (void)cudaGetLastError();
}

/// Checks a device without initializing it. @throws CudaError with the reason if this process cannot use it.
void check_device(int device);

/// @throws InvalidArgument for memory that kernels on the device cannot use: host memory that is not
///         registered with CUDA, and memory of another device.
void check_memory(int device, const void* data, const std::string& name);

/// Makes a device current. The destructor makes the former one current again, unless CUDA was not in use
/// there. Making a device current initializes it, which takes about 500 MB of its memory. So a process that
/// uses one of several GPUs makes that GPU current first, as for all CUDA programs.
class CurrentDevice {
public:
    explicit CurrentDevice(int device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

private:
    int former_ = -1;
};

/// Lets this thread allocate, free and wait while this or another thread captures a stream.
class RelaxedCapture {
public:
    RelaxedCapture() noexcept { ignore_failure(cudaThreadExchangeStreamCaptureMode(&mode_)); }
    ~RelaxedCapture() { ignore_failure(cudaThreadExchangeStreamCaptureMode(&mode_)); }
    RelaxedCapture(const RelaxedCapture&) = delete;
    RelaxedCapture& operator=(const RelaxedCapture&) = delete;

private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

/// Makes a device current while its memory is freed, without breaking a capture. Never throws.
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
