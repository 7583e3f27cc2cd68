// LibTorch optimizers as checkpoint folders: the folders that the core's optimizers and `flashoptim train`
// write and read, too (docs/checkpoints.md). For torch::save and torch::load see libtorch.h.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "flashoptim/checkpoint.h"
#include "flashoptim/libtorch.h"

namespace flashoptim::libtorch {

/// Tensors by their names, as torch::nn::Module::named_parameters() returns them. Of a tensor with several
/// names the first one counts. Tensors that are not in the optimizer are ignored. If there are no names at
/// all (`ParameterNames()`), parameters are called "parameter 0", "parameter 1", ... in the order of the
/// groups.
using ParameterNames = torch::OrderedDict<std::string, torch::Tensor>;

/// Saves an optimizer, and the weights of its parameters, as a checkpoint folder. Saved is what
/// flashoptim::save_optimizer() saves. A parameter without a state stays one. Of the options only the
/// hyperparameters are saved. Tensors on a device are copied to the host first.
/// @return its bytes on disk
/// @throws InvalidArgument for a parameter without a name, two parameters of one name, or an application_json
///         that is no JSON object.
/// @throws IoError if it cannot be written.
std::uint64_t save_optimizer(FlashOptimizer& optimizer, const ParameterNames& names,
                             const std::filesystem::path& folder, const SaveOptions& options = {});

/// Loads a checkpoint folder, whoever wrote it, as flashoptim::load_optimizer() does: same rule, same number
/// of groups, and the same parameters by name, group, shape and dtype. Options other than hyperparameters
/// stay as they are, and state of another format is converted to them. A parameter that was saved without a
/// state loses its own.
/// @throws FormatError names the parameter and the remedy. The optimizer is as it was.
/// @throws InvalidArgument for a parameter without a name, or two of one name. The optimizer is as it was.
/// @throws IoError if the checkpoint cannot be read. The optimizer is as it was.
LoadReport load_optimizer(FlashOptimizer& optimizer, const ParameterNames& names,
                          const std::filesystem::path& folder, const LoadOptions& options = {});
/// The same from a checkpoint that is open, for callers that look at its metadata first.
LoadReport load_optimizer(FlashOptimizer& optimizer, const ParameterNames& names,
                          const checkpoint::Checkpoint& from, const LoadOptions& options = {});

}  // namespace flashoptim::libtorch

#endif
