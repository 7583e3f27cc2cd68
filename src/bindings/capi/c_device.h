// CUDA devices for the C interface. A build without the CUDA backend throws InvalidArgument.
#pragma once

#include <cstdint>
#include <memory>

#include "flashoptim/device.h"

namespace flashoptim::capi {

std::int32_t cuda_device_count() noexcept;
/// Makes a CUDA device. @throws InvalidArgument if this build has no CUDA backend, cuda::CudaError for a
/// device that does not exist.
std::shared_ptr<Device> make_cuda_device(std::int32_t device, void* stream);
/// Sets the stream of a device of make_cuda_device(). @throws InvalidArgument for null.
void set_cuda_stream(Device* device, void* stream);

}  // namespace flashoptim::capi
