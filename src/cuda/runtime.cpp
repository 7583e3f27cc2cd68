// Errors of the CUDA runtime with their remedies, checks of devices and memory, and the current device.
#include "cuda/runtime.h"

#include "flashoptim/cuda.h"

namespace flashoptim::cuda {

namespace {

const char* remedy(cudaError_t status) {
    switch (status) {
        case cudaErrorIllegalAddress:
            return "a kernel that ran before used memory that its device cannot: give weights, gradients and "
                   "state in memory of the device that is not freed before the step has run; this process "
                   "cannot use the device any more";
        case cudaErrorNoKernelImageForDevice:
            return "the kernels were not built for this GPU: take one of compute capability 8.0 or later, or "
                   "build for this one with -DFLASHOPTIM_CUDA_ARCHITECTURES";
        case cudaErrorUnsupportedPtxVersion:
            return "the driver is older than the compiler of the kernels: update the driver, or build for "
                   "this GPU with -DFLASHOPTIM_CUDA_ARCHITECTURES=native";
        default:
            return "see whether driver, device and free memory are what the program needs";
    }
}

std::string described(cudaError_t status) {
    return std::string(cudaGetErrorName(status)) + " (" + cudaGetErrorString(status) + ")";
}

/// "12.4" for 12040.
std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void make_current_again(int device) noexcept {
    if (device >= 0) ignore_failure(cudaSetDevice(device));
}

}  // namespace

void check_cuda(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // clears the error: it is reported here
    throw CudaError(std::string(call) + " failed with " + described(status) + ": " + remedy(status));
}

int device_count() {
    int count = 0;
    const auto status = cudaGetDeviceCount(&count);
    ignore_failure(status);  // no driver, or one that is too old
    return status == cudaSuccess ? count : 0;
}

void check_device(int device) {
    int count = 0;
    const auto status = cudaGetDeviceCount(&count);
    ignore_failure(status);
    const auto name = "CUDA device " + std::to_string(device);
    int driver = 0, runtime = 0;
    if (status == cudaErrorInsufficientDriver) {  // also returned if there is no driver
        ignore_failure(cudaDriverGetVersion(&driver));
        ignore_failure(cudaRuntimeGetVersion(&runtime));
    }
    if (driver != 0) {
        throw CudaError(name + " cannot be used: the driver is for CUDA " + version_text(driver) +
                        " and this library was built with CUDA " + version_text(runtime) +
                        "; update the driver, or build with a CUDA that it supports (12.4 or later)");
    }
    if (status == cudaErrorInitializationError) {
        throw CudaError(name + " cannot be used: CUDA cannot begin in this process, " + described(status) +
                        "; if it was forked from one that had used CUDA, start processes with spawn instead; "
                        "otherwise see to the driver");
    }
    if (status != cudaErrorNoDevice && status != cudaErrorInsufficientDriver) {
        check_cuda(status, "cudaGetDeviceCount");
    }
    if (status != cudaSuccess) count = 0;
    if (device < 0 || device >= count) {
        throw CudaError(name + " does not exist: this process sees " + std::to_string(count) +
                        "; choose another, or see to the driver and CUDA_VISIBLE_DEVICES");
    }
}

void check_memory(int device, const void* data, const std::string& name) {
    const CurrentDevice current(device);
    cudaPointerAttributes attributes{};
    check_cuda(cudaPointerGetAttributes(&attributes, data), "cudaPointerGetAttributes");
    if (attributes.type == cudaMemoryTypeUnregistered) {
        throw InvalidArgument(name + " lies in memory of the host: give memory of CUDA device " +
                              std::to_string(device) + ", or the optimizer no device");
    }
    if (attributes.type == cudaMemoryTypeDevice && attributes.device != device) {
        throw InvalidArgument(name + " lies on CUDA device " + std::to_string(attributes.device) +
                              " and its optimizer on " + std::to_string(device) +
                              ": make an optimizer for each device");
    }
}

CurrentDevice::CurrentDevice(int device) {
    int former = -1;
    check_cuda(cudaGetDevice(&former), "cudaGetDevice");
    if (former == device) return;
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    former_ = former;
}
CurrentDevice::~CurrentDevice() { make_current_again(former_); }

GivingBack::GivingBack(int device) noexcept {
    int former = -1;
    ignore_failure(cudaGetDevice(&former));
    if (former < 0 || former == device) return;
    ignore_failure(cudaSetDevice(device));
    former_ = former;
}
GivingBack::~GivingBack() { make_current_again(former_); }

}  // namespace flashoptim::cuda
