// From tensors of a checkpoint to a state, checked. What is converted is converted at its first use.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "flashoptim/libtorch_headers.h"
#include "optimizer_impl.h"

namespace flashoptim::libtorch {

/// The form of a state that was saved of this parameter under these options. Empty strides: those of now.
/// @throws FormatError for strides that the parameter cannot have had.
StateForm form_of_saved(const Parameter& parameter, at::IntArrayRef saved_strides, torch::Dtype saved_dtype,
                        Rule rule, const FlashOptions& options);
/// A state of copies of `tensors` in this form; its counts are 0.
/// @throws FormatError for tensors that are not such a state.
std::unique_ptr<FlashParamState> restore_state(Rule rule, const Parameter& parameter, const StateForm& form,
                                               const std::map<std::string, torch::Tensor>& tensors);

}  // namespace flashoptim::libtorch
