// The models that can be asked for by name: presets, their sizes and what identifies a model in a
// checkpoint. A new family (gpt2, resnet) adds its presets in registry.cpp and its factory in model.cpp. No
// torch header ever appears here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/models/llama_config.h"

namespace flashoptim::trainer {

/// A model by the name of its preset, with the fields that the user changed.
struct ModelOptions {
    std::string preset = "llama-1m";
    std::optional<std::int64_t> vocabulary_size;  ///< default: the preset's own
    std::optional<bool> tied;                     ///< default: the preset's own
};

/// One line of a list of presets.
struct PresetInfo {
    std::string name;
    std::int64_t parameters;       ///< with the preset's own vocabulary
    std::int64_t vocabulary_size;  ///< 256 for models of bytes
    std::string shape;             ///< for people, for example "dim 128, 5 layers, 4 heads"
};

/// All presets, smallest first.
std::vector<PresetInfo> presets();

/// The configuration that `options` describes. Throws InvalidArgument for an unknown
/// preset, naming those that exist.
LlamaConfig llama_config(const ModelOptions& options);

/// Exact number of parameters of the model, without allocating it.
std::int64_t parameter_count(const ModelOptions& options);

/// What makes two models the same: field names and values, in a fixed order. Written into
/// checkpoints and compared on resume.
std::vector<std::pair<std::string, std::string>> model_fields(const ModelOptions& options);

}  // namespace flashoptim::trainer
