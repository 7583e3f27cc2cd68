// The interface of the operators to the CUDA kernels. It exists in builds with and without the kernels.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "flashoptim/cuda.h"
#include "tensors.h"

namespace flashoptim::operators {

/// Whether the CUDA kernels of this build step tensors of that device: a GPU, or the CPU if the kernels are
/// emulated for tests.
bool has_kernels_for(TensorDevice device);
/// The reason and remedy, for a message, if tensors of a device can be stepped neither by the CPU nor by
/// these kernels.
std::string why_not_stepped(TensorDevice device);

/// Makes a step plan and returns its number, for callers that keep the uploaded list from call to call. The
/// number 0 means a temporary plan for one call. A plan serves one thread at a time; concurrent calls wait
/// for each other. Work is enqueued on torch's current stream of the device.
std::int64_t make_step_plan();
void free_step_plan(std::int64_t number);
/// Which kernels the build has: 0 none, 1 those for CUDA, 2 emulated ones for tests.
std::int64_t gpu_kernels();

/// Each of these enqueues and does not block, but a temporary plan blocks when it is destroyed.
void gpu_step(std::int64_t plan, TensorDevice device, std::span<const StepItem> items,
              const cuda::StepOptions& options);
void gpu_count_bad(std::int64_t plan, TensorDevice device, std::span<const StepItem> items,
                   const cuda::DeviceValues& values);
void gpu_grad_norm(std::int64_t plan, TensorDevice device, std::span<const StepItem> items,
                   const cuda::DeviceValues& values, double* norm);

}  // namespace flashoptim::operators
