// The CUDA backend as the C interface has it. Builds without it refuse by name.
#pragma once

#include <cstdint>
#include <memory>

#include "flashoptim/device.h"

namespace flashoptim::capi {

std::int32_t cuda_device_count() noexcept;
/// @throws InvalidArgument where this build has no CUDA backend, cuda::CudaError for a device
///         that does not exist.
std::shared_ptr<Device> make_cuda_device(std::int32_t device, void* stream);
/// Of a device that make_cuda_device made. @throws InvalidArgument for none.
void set_cuda_stream(Device* device, void* stream);

}  // namespace flashoptim::capi
