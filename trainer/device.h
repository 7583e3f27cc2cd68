// Where a run computes: the name of a device becomes torch's, and what is asked of a device beside tensors.
#pragma once

#include <cstdint>
#include <string>

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::trainer {

/// "cpu", "cuda" or "cuda:1". Throws InvalidArgument for another name and for a device that this
/// build or machine does not have.
torch::Device find_device(const std::string& name);

/// Waits until the device has done what it was given; the CPU always has.
void wait_for(const torch::Device& device);

/// The most bytes that tensors of this process took on the device at once; 0 for the CPU,
/// whose memory is the process's.
std::int64_t peak_tensor_bytes(const torch::Device& device);

}  // namespace flashoptim::trainer
