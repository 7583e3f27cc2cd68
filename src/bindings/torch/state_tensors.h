// Makes a state of the tensors of a checkpoint, and checks them. A conversion waits for the first use of the
// state.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "flashoptim/libtorch_headers.h"
#include "optimizer_impl.h"

namespace flashoptim::libtorch {

/// The form of a state that was saved for this parameter under these options. Empty strides mean the present
/// ones.
/// @throws FormatError if the parameter cannot have had these strides.
StateForm form_of_saved(const Parameter& parameter, at::IntArrayRef saved_strides, torch::Dtype saved_dtype,
                        Rule rule, const FlashOptions& options);
/// Makes a state of this form from copies of `tensors`. Its counts are 0.
/// @throws FormatError if the tensors are not such a state.
std::unique_ptr<FlashParamState> restore_state(Rule rule, const Parameter& parameter, const StateForm& form,
                                               const std::map<std::string, torch::Tensor>& tensors);

}  // namespace flashoptim::libtorch
