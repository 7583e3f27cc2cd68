// The one writer and the one reader of optimizer checkpoints, for every kind of optimizer: of the core, of
// LibTorch, of a trainer. Knows no optimizer and no framework: bytes, names and layouts alone.
//
//     metadata.json             optimizer_manifest.h
//     weights.safetensors       one tensor for each parameter, by its name (only where asked for)
//     optimizer.safetensors     <name>.error_bits, <name>.exp_avg, <name>.exp_avg_scales, ... (buffer_name)
//
// Tensors lie as the optimizer holds them, so their shapes are those of the parameters with dimensions in
// memory order. Scales have one dimension.
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

/// A parameter of an optimizer that is saved or loaded.
struct ParameterPlace {
    std::string name;
    std::size_t group = 0;
    DType dtype = DType::kFloat32;             // of the weight
    std::vector<std::int64_t> shape, strides;  // of the weight
    Layout layout;
    StorageOptions storage;
};

/// What a checkpoint says of the steps of a parameter.
struct ParameterCounts {
    std::int64_t steps = 0;
    bool has_momentum = false;
    std::uint64_t bad_elements = 0;
};

/// A parameter, its state and its weight, borrowed until the write returns.
struct ParameterToSave {
    ParameterPlace place;
    ParameterCounts counts;
    StoragePlan plan;
    bool has_state = true;  // false: no step has made one yet; there are no buffers
    std::array<std::span<const std::byte>, kMaxBuffers> buffers;  // by place of the state
    std::span<const std::byte> weight;
};

struct OptimizerToSave {
    Rule rule = Rule::kAdamW;
    std::vector<Hyperparameters> groups;
    std::vector<ParameterToSave> parameters;
};

/// As save_optimizer().
std::uint64_t write_optimizer(const std::filesystem::path& folder, const OptimizerToSave& optimizer,
                              const SaveOptions& options);

/// Throws InvalidArgument for a name that two parameters have: saved state is found by name.
void check_names(const std::vector<ParameterPlace>& parameters);

/// An optimizer that is to take over a checkpoint.
struct OptimizerToLoad {
    Rule rule = Rule::kAdamW;
    std::vector<Hyperparameters> groups;
    std::vector<ParameterPlace> parameters;
    /// The stored weight of a parameter, by its number. Called where a correction is split again and the
    /// weight is not loaded.
    std::function<std::vector<std::byte>(std::size_t parameter)> stored_weight;
};

/// What the parameter of that number is to become.
struct LoadedParameter {
    std::size_t parameter = 0;
    ParameterCounts counts;
    bool has_bad_elements = false;  // whether the checkpoint counts them
    bool has_state = true;          // false: that before the first step, which is all zeros
    StoragePlan plan;
    StateBytes state;
};

struct LoadedOptimizer {
    std::vector<Hyperparameters> groups;  // those of the optimizer unless they were to be loaded
    std::vector<LoadedParameter> parameters;
    LoadReport report;
};

/// Reads, checks and converts all that load_optimizer() puts in place.
LoadedOptimizer read_optimizer(const Checkpoint& from, const OptimizerToLoad& optimizer,
                               const LoadOptions& options);

}  // namespace flashoptim::checkpoint
