// Checkpoint folders of LibTorch optimizers. They have the format of those of the core and of `flashoptim
// train` (docs/checkpoints.md). For torch::save and torch::load see libtorch.h.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <filesystem>
#include <string>

#include "flashoptim/checkpoint.h"
#include "flashoptim/libtorch.h"
#include "flashoptim/libtorch_headers.h"

namespace flashoptim::libtorch {

/// Tensors by name, as torch::nn::Module::named_parameters() returns them. If a tensor has several names, the
/// first one is used. Tensors that are not in the optimizer are ignored. Without any names
/// (`ParameterNames()`) parameters are called "parameter 0", "parameter 1", ... in the order of the groups.
using ParameterNames = torch::OrderedDict<std::string, torch::Tensor>;

/// Saves an optimizer and the weights of its parameters as a checkpoint folder, with the content of
/// flashoptim::save_optimizer(). A parameter without a state is saved without one. Of the options only the
/// hyperparameters are saved. Tensors on a device are copied to the host first.
/// @return its bytes on disk
/// @throws InvalidArgument for a parameter without a name, two parameters of one name, or an application_json
///         that is no JSON object.
/// @throws IoError if it cannot be written.
std::uint64_t save_optimizer(FlashOptimizer& optimizer, const ParameterNames& names,
                             const std::filesystem::path& folder, const SaveOptions& options = {});

/// Loads a checkpoint folder of any writer, as flashoptim::load_optimizer() does. Rule and number of groups
/// must be the same, and so must the parameters by name, group, shape and dtype. Options other than
/// hyperparameters stay as they are, and state of another format is converted to them. A parameter that was
/// saved without a state loses its state.
/// @throws FormatError names the parameter and the remedy. The optimizer is as it was.
/// @throws InvalidArgument for a parameter without a name, or two of one name. The optimizer is as it was.
/// @throws IoError if the checkpoint cannot be read. The optimizer is as it was.
LoadReport load_optimizer(FlashOptimizer& optimizer, const ParameterNames& names,
                          const std::filesystem::path& folder, const LoadOptions& options = {});
/// As above, from an open checkpoint, for callers that read its metadata first.
LoadReport load_optimizer(FlashOptimizer& optimizer, const ParameterNames& names,
                          const checkpoint::Checkpoint& from, const LoadOptions& options = {});

}  // namespace flashoptim::libtorch

#endif
