// metadata.json of a saved optimizer: the rule, the groups, each parameter's layout and counts, and an
// optional JSON object of the caller. Text only; no tensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flashoptim/json.h"
#include "flashoptim/optimizer.h"

namespace flashoptim::checkpoint {

/// The position of a parameter in the whole tensor that it is a part of: the fields of Layout with these
/// names.
struct SavedPlace {
    std::int64_t whole_numel = 0, whole_row_length = 0, row_offset = 0, column_offset = 0;
    bool operator==(const SavedPlace&) const = default;
};

struct SavedParameter {
    std::string name;
    std::size_t group = 0;
    std::int64_t steps = 0;
    bool has_momentum = false;
    std::optional<std::int64_t> bad_elements = {};  // absent in early versions
    bool has_state = true;                          // false before the first step
    DType dtype = DType::kFloat32;                  // of the weight
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
    bool has_groups = true;       // whether `groups` were saved
    bool scales_in_rows = false;  // whether native scales have two dimensions (row, group in the row)
};

/// `application` is a JSON object of the caller, or empty. Throws InvalidArgument if it is not a JSON object,
/// or if the name of a parameter is not UTF-8.
std::string to_json(const OptimizerManifest& manifest, const std::string& application = {});

/// Throws a FormatError that names `folder` and the field.
OptimizerManifest optimizer_manifest(const JsonValue& document, const std::filesystem::path& folder);
OptimizerManifest parse_optimizer_manifest(std::string_view json, const std::filesystem::path& folder);

/// The name of the document in messages.
std::string manifest_label(const std::filesystem::path& folder);

}  // namespace flashoptim::checkpoint
