// The buffers of a parameter's state: which ones exist, their initial values, their memory. Nothing here
// computes their values.
#pragma once

#include <memory>
#include <string>

#include "flashoptim/libtorch_headers.h"
#include "optimizer_impl.h"

namespace flashoptim::libtorch {

/// The storage plan of a parameter under the options of its group.
StoragePlan plan_of(Rule rule, const FlashOptions& options, const torch::Tensor& tensor, const Layout& layout,
                    const std::string& name);
/// Whether a state of form `a` can be used as one of form `b` without a conversion.
bool fits(const StateForm& a, const StateForm& b, at::IntArrayRef sizes);
/// A zeroed buffer for one place of a state of this form. Undefined if the plan has no such buffer.
torch::Tensor zeroed_buffer(int place, at::IntArrayRef sizes, const StateForm& form,
                            const torch::Device& device);
/// Zeroed buffers for all places of a state of this form.
void allocate_state(at::IntArrayRef sizes, const StateForm& form, const torch::Device& device,
                    FlashParamState& state);
/// Moves every tensor of a state to a device.
void move_state(FlashParamState& state, const torch::Device& device);
/// The addresses of the buffers for the core. @throws InvalidArgument if a tensor of the state was replaced
/// by one of another dtype, shape or layout.
StateBuffers buffers(const FlashParamState& state, const StoragePlan& plan, const std::string& parameter);

}  // namespace flashoptim::libtorch
