// What a saved optimizer says of itself beside its tensors: rule, groups, and how each parameter
// lies. Text only; no tensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "flashoptim/optimizer.h"

namespace flashoptim::checkpoint {

/// Where a parameter lies in the tensor that it is a part of (Layout's fields of these names).
struct SavedPlace {
    std::int64_t whole_numel = 0, whole_row_length = 0, row_offset = 0, column_offset = 0;
    bool operator==(const SavedPlace&) const = default;
};

struct SavedParameter {
    std::string name;
    std::size_t group = 0;
    std::int64_t steps = 0;
    bool has_momentum = false;
    DType dtype = DType::kFloat32;  // of the weight
    std::vector<std::int64_t> shape, strides;
    SavedPlace place;
    Format format = Format::kNative;
    bool quantized = false;  // whether the moments are codes
    int master_weight_bits = 0;
};

struct OptimizerManifest {
    Rule rule = Rule::kAdamW;
    std::vector<Hyperparameters> groups;
    std::vector<SavedParameter> parameters;
};

/// Throws InvalidArgument for a parameter's name that is not UTF-8.
std::string to_json(const OptimizerManifest& manifest);

/// Throws FormatError that names `folder` and the field.
OptimizerManifest parse_optimizer_manifest(std::string_view json, const std::filesystem::path& folder);

}  // namespace flashoptim::checkpoint
