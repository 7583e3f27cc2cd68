// The shape of a Llama model as plain numbers: the configuration and what follows from it without allocating
// anything. No tensor and no torch header ever appears here.
#pragma once

#include <cstdint>
#include <vector>

namespace flashoptim::trainer {

/// Shape of a decoder-only transformer of the Llama architecture: RMSNorm, rotary positions, grouped-query
/// attention, SwiGLU.
struct LlamaConfig {
    std::int64_t vocabulary_size = 256;
    std::int64_t dim = 128;        ///< width of the residual stream
    std::int64_t layers = 5;       ///< number of blocks
    std::int64_t heads = 4;        ///< query heads; dim / heads is the head size and must be even
    std::int64_t kv_heads = 4;     ///< key and value heads; divides `heads`
    std::int64_t hidden = 352;     ///< width of the feed-forward layer
    double rope_theta = 10'000.0;  ///< base of the rotary frequencies
    double norm_eps = 1e-5;        ///< added to the mean square inside RMSNorm
    bool tied = false;             ///< the output projection is the embedding matrix

    std::int64_t head_dim() const { return dim / heads; }
};

/// Throws InvalidArgument naming the first field that no model can be built from.
void validate(const LlamaConfig& config);

/// Parameters of one shape.
struct ParameterShape {
    std::vector<std::int64_t> shape;
    std::int64_t copies = 1;
};

/// Every trainable parameter by its shape; a tied output counts once. Throws as validate() does.
std::vector<ParameterShape> parameter_shapes(const LlamaConfig& config);

/// Exact number of trainable parameters. Throws as validate() does, and InvalidArgument where 64 bits do not
/// hold it.
std::int64_t parameter_count(const LlamaConfig& config);

}  // namespace flashoptim::trainer
