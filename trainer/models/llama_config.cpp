// Checks and counts of a Llama configuration. Never allocates a tensor.
#include "trainer/models/llama_config.h"

#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "flashoptim/error.h"
#include "flashoptim/system/checked_arithmetic.h"

namespace flashoptim::trainer {

void validate(const LlamaConfig& config) {
    const auto positive = [](std::int64_t value, const char* name) {
        // Half of the bits, so that no product of two of them is beyond 64.
        constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 2;
        if (value < 1 || value > kMost) {
            throw InvalidArgument(std::string("llama: ") + name + " is " + std::to_string(value) +
                                  "; it must be a whole number from 1 to " + std::to_string(kMost));
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

std::vector<ParameterShape> parameter_shapes(const LlamaConfig& config) {
    validate(config);
    const std::int64_t kv_dim = config.kv_heads * config.head_dim();
    return {{{config.vocabulary_size, config.dim}, config.tied ? 1 : 2},  // embedding, output
            {{config.dim, config.dim}, 2 * config.layers},                // queries, attention's output
            {{kv_dim, config.dim}, 2 * config.layers},                    // keys, values
            {{config.hidden, config.dim}, 2 * config.layers},             // gate, up
            {{config.dim, config.hidden}, config.layers},                 // down
            {{config.dim}, 2 * config.layers + 1}};                       // norms
}

std::int64_t parameter_count(const LlamaConfig& config) {
    std::optional<std::int64_t> count = 0;
    for (const auto& [shape, copies] : parameter_shapes(config)) {
        const auto one = checked_numel(shape);
        const auto all = one ? checked_multiply(*one, copies) : one;
        count = count && all ? checked_add(*count, *all) : std::nullopt;
    }
    if (!count) {
        throw InvalidArgument(
            "llama: this shape has more parameters than can be counted; choose a smaller vocabulary_size, "
            "dim, "
            "hidden or number of layers");
    }
    return *count;
}

}  // namespace flashoptim::trainer
