// The device of a run: from its name to torch's device, and queries of the device.
#pragma once

#include <cstdint>
#include <string>

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::trainer {

/// The device named "cpu", "cuda" or "cuda:1". Throws InvalidArgument for another name and for a device that
/// this build or machine does not have.
torch::Device find_device(const std::string& name);

/// Waits until the device has finished all work. On the CPU there is nothing to wait for.
void wait_for(const torch::Device& device);

/// The peak of the bytes that tensors of this process used on the device. 0 for the CPU: see
/// process_memory.h.
std::int64_t peak_tensor_bytes(const torch::Device& device);

}  // namespace flashoptim::trainer
