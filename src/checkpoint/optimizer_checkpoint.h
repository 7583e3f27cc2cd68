// The writer and the reader of optimizer checkpoints. The optimizers of the core, LibTorch and the trainer
// all use them. They see only bytes, names and layouts: no optimizer, no framework.
//
//     metadata.json             optimizer_manifest.h
//     weights.safetensors       one tensor per parameter, under the parameter's name (optional)
//     optimizer.safetensors     <name>.error_bits, <name>.exp_avg, <name>.exp_avg_scales, ... (buffer_name)
//
// Tensors are stored in the memory order of the optimizer: their shapes are the parameters' shapes with the
// dimensions sorted by stride. Scales have one dimension.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "flashoptim/checkpoint.h"
#include "flashoptim/layout.h"
#include "flashoptim/step.h"
#include "state_conversion.h"

namespace flashoptim::checkpoint {

/// One parameter of the optimizer that is saved or loaded.
struct ParameterPlace {
    std::string name;
    std::size_t group = 0;
    DType dtype = DType::kFloat32;             // of the weight
    std::vector<std::int64_t> shape, strides;  // of the weight
    Layout layout;
    StorageOptions storage;
};

/// What a checkpoint records about the steps of one parameter.
struct ParameterCounts {
    std::int64_t steps = 0;
    bool has_momentum = false;
    std::uint64_t bad_elements = 0;
};

/// One parameter with its state and weight. The memory is borrowed until the write returns.
struct ParameterToSave {
    ParameterPlace place;
    ParameterCounts counts;
    StoragePlan plan;
    bool has_state = true;  // false before the first step: there are no buffers
    std::array<std::span<const std::byte>, kMaxBuffers> buffers;  // in the order of StoragePlan
    std::span<const std::byte> weight;
};

struct OptimizerToSave {
    Rule rule = Rule::kAdamW;
    std::vector<Hyperparameters> groups;
    std::vector<ParameterToSave> parameters;
};

/// Does what save_optimizer() does.
std::uint64_t write_optimizer(const std::filesystem::path& folder, const OptimizerToSave& optimizer,
                              const SaveOptions& options);

/// Throws InvalidArgument if two parameters have the same name, because saved state is found by name.
void check_names(const std::vector<ParameterPlace>& parameters);

/// The optimizer that loads a checkpoint.
struct OptimizerToLoad {
    Rule rule = Rule::kAdamW;
    std::vector<Hyperparameters> groups;
    std::vector<ParameterPlace> parameters;
    /// Returns the stored weight of the parameter with this index. Called when a correction is computed anew
    /// and the weight is not loaded.
    std::function<std::vector<std::byte>(std::size_t parameter)> stored_weight;
};

/// The new state of the parameter with this index.
struct LoadedParameter {
    std::size_t parameter = 0;
    ParameterCounts counts;
    bool has_bad_elements = false;  // whether the checkpoint stores this count
    bool has_state = true;          // false: the state before the first step, all zeros
    StoragePlan plan;
    StateBytes state;
};

struct LoadedOptimizer {
    std::vector<Hyperparameters> groups;  // the loaded ones, or the optimizer's own if not asked for
    std::vector<LoadedParameter> parameters;
    LoadReport report;
};

/// Reads, checks and converts everything that load_optimizer() then installs.
LoadedOptimizer read_optimizer(const Checkpoint& from, const OptimizerToLoad& optimizer,
                               const LoadOptions& options);

}  // namespace flashoptim::checkpoint
