// Checks and counts of a Llama configuration. Never allocates a tensor.
#include "trainer/models/llama_config.h"

#include <cmath>
#include <string>

#include "flashoptim/error.h"

namespace flashoptim::trainer {

void validate(const LlamaConfig& config) {
    const auto positive = [](std::int64_t value, const char* name) {
        if (value < 1) {
            throw InvalidArgument(std::string("llama: ") + name + " is " + std::to_string(value) +
                                  "; it must be at least 1");
        }
    };
    positive(config.vocabulary_size, "vocabulary_size");
    positive(config.dim, "dim");
    positive(config.layers, "layers");
    positive(config.heads, "heads");
    positive(config.kv_heads, "kv_heads");
    positive(config.hidden, "hidden");
    if (config.dim % config.heads != 0 || config.head_dim() % 2 != 0) {
        throw InvalidArgument("llama: dim " + std::to_string(config.dim) + " over " +
                              std::to_string(config.heads) +
                              " heads is no even head size; choose dim as a multiple of 2 * heads");
    }
    if (config.heads % config.kv_heads != 0) {
        throw InvalidArgument("llama: " + std::to_string(config.kv_heads) + " kv_heads do not divide " +
                              std::to_string(config.heads) + " heads; choose a divisor");
    }
    if (!(config.rope_theta > 1.0) || !std::isfinite(config.rope_theta)) {
        throw InvalidArgument("llama: rope_theta is " + std::to_string(config.rope_theta) +
                              "; it must be finite and greater than 1");
    }
    if (!(config.norm_eps >= 0.0) || !std::isfinite(config.norm_eps)) {
        throw InvalidArgument("llama: norm_eps is " + std::to_string(config.norm_eps) +
                              "; it must be finite and not negative");
    }
}

std::int64_t parameter_count(const LlamaConfig& config) {
    validate(config);
    const std::int64_t kv_dim = config.kv_heads * config.head_dim();
    const std::int64_t attention = 2 * config.dim * config.dim + 2 * config.dim * kv_dim;
    const std::int64_t feed_forward = 3 * config.dim * config.hidden;
    const std::int64_t norms = 2 * config.dim;
    const std::int64_t embedding = config.vocabulary_size * config.dim;
    const std::int64_t output = config.tied ? 0 : embedding;
    return embedding + config.layers * (attention + feed_forward + norms) + config.dim + output;
}

}  // namespace flashoptim::trainer
