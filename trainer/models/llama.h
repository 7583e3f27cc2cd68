// The Llama architecture as a LibTorch module. Parameter names, weight layouts and the rotary convention are
// those of Hugging Face's Llama models. Knows no optimizer and no data.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "flashoptim/libtorch_headers.h"
#include "trainer/models/llama_config.h"
#include "trainer/models/model.h"

namespace flashoptim::trainer {

/// Rotates each pair (i, i + head_dim / 2) of every head by position * theta^(-2 i / head_dim) (RoFormer,
/// arXiv 2104.09864, eq. 34). `heads` is (batch, sequence, heads, head_dim), `table` a rope_table() of at
/// least that sequence; the result is fp32.
torch::Tensor apply_rope(const torch::Tensor& heads, const torch::Tensor& table);

/// Cosines and sines as fp32 (2, sequence, 1, head_dim / 2), computed in double.
torch::Tensor rope_table(std::int64_t sequence, std::int64_t head_dim, double theta);

/// Causal attention with grouped key and value heads; all tensors (batch, sequence, heads,
/// head_dim), result in `dtype`.
torch::Tensor causal_attention(const torch::Tensor& query, const torch::Tensor& key,
                               const torch::Tensor& value, torch::ScalarType dtype);

/// A weight without bias, alone in a module so that its name ends in ".weight" as the
/// checkpoints of the field have it.
class Weight : public torch::nn::Module {
public:
    torch::Tensor weight;
};

/// One transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)).
class LlamaBlock : public torch::nn::Module {
public:
    LlamaBlock(const LlamaConfig& config, torch::ScalarType weight_dtype);

    /// `x` is (batch, sequence, dim); the products run in `product_dtype`.
    torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& rope,
                          torch::ScalarType product_dtype) const;

private:
    torch::Tensor attend(const torch::Tensor& x, const torch::Tensor& rope,
                         torch::ScalarType product_dtype) const;
    torch::Tensor feed_forward(const torch::Tensor& x) const;

    std::int64_t head_dim_;
    double norm_eps_;
    torch::Tensor attention_norm_, query_, key_, value_, attention_output_;
    torch::Tensor feed_forward_norm_, gate_, up_, down_;
};

/// The whole model. Not thread-safe.
class Llama : public Model {
public:
    Llama(const LlamaConfig& config, const ModelBuild& build);

    torch::Tensor forward(const torch::Tensor& inputs, const torch::Tensor& targets) override;

    std::int64_t autocast_copy_bytes() const override;

    /// fp32 logits (batch, sequence, vocabulary) of `inputs`, all at once.
    torch::Tensor logits(const torch::Tensor& inputs);

    const LlamaConfig& config() const { return config_; }

private:
    torch::Tensor hidden_states(const torch::Tensor& inputs);
    torch::ScalarType product_dtype() const;
    void initialise(std::uint64_t seed);

    LlamaConfig config_;
    ModelBuild build_;
    torch::Tensor embedding_, final_norm_, output_, rope_;
    std::vector<std::shared_ptr<LlamaBlock>> blocks_;
    std::vector<std::vector<torch::Tensor>> block_parameters_;
};

}  // namespace flashoptim::trainer
