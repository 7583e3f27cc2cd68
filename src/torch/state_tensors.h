// From tensors of a checkpoint to a state: checked, and brought into the parameter's present memory order.
#pragma once

#include <torch/torch.h>

#include <map>
#include <memory>
#include <string>

#include "optimizer_impl.h"

namespace flashoptim::libtorch {

/// A state of copies of `tensors` on the parameter's device for `plan`; its scalars are those of `scalars`.
/// @param saved_strides  strides of the parameter when it was saved; empty: those of now
/// @throws FormatError for tensors that are not such a state.
std::unique_ptr<FlashParamState> restore_state(Rule rule, const FlashOptions& options,
                                               const Parameter& parameter,
                                               const std::map<std::string, torch::Tensor>& tensors,
                                               at::IntArrayRef saved_strides, const FlashParamState& scalars);

}  // namespace flashoptim::libtorch
