// The table of presets. Never builds a model: see model.cpp.
#include "trainer/models/registry.h"

#include <array>
#include <sstream>
#include <string_view>

#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

struct Preset {
    std::string_view name;
    LlamaConfig config;
};

constexpr std::int64_t kBytes = 256;
constexpr std::int64_t kGpt2Vocabulary = 50'304;  // 50,257 rounded up to a multiple of 64
constexpr std::int64_t kLlama3Vocabulary = 128'256;
constexpr double kLlama3Theta = 500'000.0;

LlamaConfig shape(std::int64_t dim, std::int64_t layers, std::int64_t heads, std::int64_t kv_heads,
                  std::int64_t hidden) {
    LlamaConfig config;
    config.dim = dim;
    config.layers = layers;
    config.heads = heads;
    config.kv_heads = kv_heads;
    config.hidden = hidden;
    return config;
}

LlamaConfig bytes(LlamaConfig config) {
    config.vocabulary_size = kBytes;
    return config;
}

LlamaConfig gpt2_tokens(LlamaConfig config) {
    config.vocabulary_size = kGpt2Vocabulary;
    config.tied = true;
    return config;
}

LlamaConfig llama3(LlamaConfig config, bool tied) {
    config.vocabulary_size = kLlama3Vocabulary;
    config.rope_theta = kLlama3Theta;
    config.tied = tied;
    return config;
}

const std::array<Preset, 10>& table() {
    static const std::array<Preset, 10> kTable = {{
        {"llama-tiny", bytes(shape(32, 2, 2, 1, 96))},  // trains in seconds: tests and first tries
        {"llama-1m", bytes(shape(128, 5, 4, 4, 352))},
        {"llama-3m", bytes(shape(256, 4, 4, 4, 704))},
        {"llama-10m", bytes(shape(384, 6, 6, 6, 1024))},
        {"llama-30m", bytes(shape(512, 9, 8, 8, 1408))},
        {"llama-124m", gpt2_tokens(shape(768, 12, 12, 12, 2048))},
        {"llama-300m", bytes(shape(1024, 24, 16, 16, 2816))},
        {"llama-1b", llama3(shape(2048, 16, 32, 8, 8192), true)},    // as Llama 3.2 1B
        {"llama-3b", llama3(shape(3072, 28, 24, 8, 8192), true)},    // as Llama 3.2 3B
        {"llama-8b", llama3(shape(4096, 32, 32, 8, 14336), false)},  // as Llama 3.1 8B
    }};
    return kTable;
}

std::string shortest(double value) {
    std::ostringstream text;
    text.precision(17);
    text << value;
    return text.str();
}

}  // namespace

std::vector<PresetInfo> presets() {
    std::vector<PresetInfo> all;
    for (const Preset& preset : table()) {
        const LlamaConfig& config = preset.config;
        all.push_back({std::string(preset.name), parameter_count(config), config.vocabulary_size,
                       "dim " + std::to_string(config.dim) + ", " + std::to_string(config.layers) +
                           " layers, " + std::to_string(config.heads) + " heads"});
    }
    return all;
}

LlamaConfig llama_config(const ModelOptions& options) {
    std::string known;
    for (const Preset& preset : table()) {
        if (preset.name == options.preset) {
            LlamaConfig config = preset.config;
            config.vocabulary_size = options.vocabulary_size.value_or(config.vocabulary_size);
            config.tied = options.tied.value_or(config.tied);
            validate(config);
            return config;
        }
        known += (known.empty() ? "" : ", ") + std::string(preset.name);
    }
    throw InvalidArgument("model preset '" + options.preset + "' is not known; choose one of " + known);
}

std::int64_t parameter_count(const ModelOptions& options) { return parameter_count(llama_config(options)); }

std::vector<std::pair<std::string, std::string>> model_fields(const ModelOptions& options) {
    const LlamaConfig config = llama_config(options);
    return {
        {"family", "llama"},
        {"vocabulary_size", std::to_string(config.vocabulary_size)},
        {"dim", std::to_string(config.dim)},
        {"layers", std::to_string(config.layers)},
        {"heads", std::to_string(config.heads)},
        {"kv_heads", std::to_string(config.kv_heads)},
        {"hidden", std::to_string(config.hidden)},
        {"rope_theta", shortest(config.rope_theta)},
        {"norm_eps", shortest(config.norm_eps)},
        {"tied", config.tied ? "true" : "false"},
    };
}

}  // namespace flashoptim::trainer
