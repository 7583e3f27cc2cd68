// The CUDA kernels as the operators use them, in a build that has them and in one that has none.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "flashoptim/cuda.h"
#include "tensors.h"

namespace flashoptim::operators {

/// Whether the CUDA kernels of this build step tensors of that device: those of a GPU, or of the CPU where
/// they are emulated for tests.
bool has_kernels_for(TensorDevice device);
/// Why tensors of a device that is neither the CPU nor one of these cannot be stepped, and what to do.
std::string why_not_stepped(TensorDevice device);

/// Step plans by number, for callers that keep the uploaded list from call to call; 0 is a plan of the call's
/// own. A number serves one thread at a time; calls that meet wait for each other. Work is enqueued on
/// torch's current stream of the device.
std::int64_t make_step_plan();
void free_step_plan(std::int64_t number);
/// What the build has: 0 no kernels, 1 CUDA's, 2 emulated ones, for tests.
std::int64_t gpu_kernels();

/// Each enqueues and does not wait, except that a plan of the call's own waits when it is given back.
void gpu_step(std::int64_t plan, TensorDevice device, std::span<const StepItem> items,
              const cuda::StepOptions& options);
void gpu_count_bad(std::int64_t plan, TensorDevice device, std::span<const StepItem> items,
                   const cuda::DeviceValues& values);
void gpu_grad_norm(std::int64_t plan, TensorDevice device, std::span<const StepItem> items,
                   const cuda::DeviceValues& values, double* norm);

}  // namespace flashoptim::operators
