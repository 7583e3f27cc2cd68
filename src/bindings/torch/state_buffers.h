// The buffers of a parameter's state: which there are, what they hold at first, where they lie. What is
// written into them never stands here.
#pragma once

#include <memory>
#include <string>

#include "flashoptim/libtorch_headers.h"
#include "optimizer_impl.h"

namespace flashoptim::libtorch {

/// The plan of a parameter under its group's options.
StoragePlan plan_of(Rule rule, const FlashOptions& options, const torch::Tensor& tensor, const Layout& layout,
                    const std::string& name);
/// Whether a state of one form serves a parameter of the other.
bool fits(const StateForm& a, const StateForm& b, at::IntArrayRef sizes);
/// Zeros for the buffer at a place of a state in this form; undefined if its plan has none.
torch::Tensor zeroed_buffer(int place, at::IntArrayRef sizes, const StateForm& form,
                            const torch::Device& device);
/// Zeros for all buffers of a state in this form.
void allocate_state(at::IntArrayRef sizes, const StateForm& form, const torch::Device& device,
                    FlashParamState& state);
/// Brings every tensor of a state to a device.
void move_state(FlashParamState& state, const torch::Device& device);
/// Where the core finds them. @throws InvalidArgument if somebody has exchanged a tensor of
/// the state for another kind.
StateBuffers buffers(const FlashParamState& state, const StoragePlan& plan, const std::string& parameter);

}  // namespace flashoptim::libtorch
