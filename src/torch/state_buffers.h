// The buffers of a parameter's state: which there are, what they hold at first, where they lie. What is written into them never
// stands here.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>

#include "optimizer_impl.h"

namespace flashoptim::libtorch {

/// The plan of a parameter under its group's options.
StoragePlan plan_of(Rule rule, const FlashOptions& options, const torch::Tensor& tensor, const Layout& layout,
                    const std::string& name);
/// An empty state of a rule.
std::unique_ptr<FlashParamState> new_state(Rule rule);
/// Zeros on a device for the buffers that a plan asks for, for a parameter that lies so.
void allocate_state(const Parameter& parameter, const StoragePlan& plan, const Layout& layout,
                    at::IntArrayRef strides, const torch::Device& device, FlashParamState& state);
/// Brings every tensor of a state to a device.
void move_state(FlashParamState& state, const torch::Device& device);
/// Where the core finds them. @throws InvalidArgument if somebody has exchanged a tensor of the state for another kind.
StateBuffers buffers(const FlashParamState& state, const StoragePlan& plan, const std::string& parameter);

}  // namespace flashoptim::libtorch
