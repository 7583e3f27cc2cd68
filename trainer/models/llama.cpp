// Forward pass and initial weights of the Llama architecture. Knows no optimizer and no data.
#include "trainer/models/llama.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "flashoptim/error.h"
#include "trainer/models/autocast.h"
#include "trainer/models/recompute.h"
#include "trainer/models/token_loss.h"

namespace flashoptim::trainer {
namespace {

// Up to this length torch's bf16 attention on CPU takes twice the time of its fp32
// one; beyond, they are equal.
constexpr std::int64_t kShortSequence = 128;

constexpr double kInitialDeviation = 0.02;  // GPT-2's; residual projections divide it by sqrt(2 * layers)

torch::Tensor add_weight(torch::nn::Module& parent, const std::string& name, torch::IntArrayRef shape,
                         torch::ScalarType dtype) {
    const auto holder = parent.register_module(name, std::make_shared<Weight>());
    holder->weight = holder->register_parameter("weight", torch::empty(shape, torch::TensorOptions(dtype)));
    return holder->weight;
}

torch::nn::Module& add_scope(torch::nn::Module& parent, const std::string& name) {
    return *parent.register_module(name, std::make_shared<torch::nn::Module>());
}

torch::Tensor normalise(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
    return torch::rms_norm(x, {x.size(-1)}, weight, eps);
}

}  // namespace

torch::Tensor rope_table(std::int64_t sequence, std::int64_t head_dim, double theta) {
    const auto fp64 = torch::TensorOptions(torch::kFloat64);
    const torch::Tensor frequency =
        torch::pow(theta, torch::arange(0, head_dim, 2, fp64) / (-static_cast<double>(head_dim)));
    const torch::Tensor angle = torch::outer(torch::arange(sequence, fp64), frequency).unsqueeze(1);
    return torch::stack({angle.cos(), angle.sin()}).to(torch::kFloat32);
}

torch::Tensor apply_rope(const torch::Tensor& heads, const torch::Tensor& table) {
    const std::int64_t sequence = heads.size(1);
    const torch::Tensor cosine = table[0].narrow(0, 0, sequence);
    const torch::Tensor sine = table[1].narrow(0, 0, sequence);
    const std::vector<torch::Tensor> half = heads.chunk(2, -1);
    return torch::cat({half[0] * cosine - half[1] * sine, half[1] * cosine + half[0] * sine}, -1);
}

torch::Tensor causal_attention(const torch::Tensor& query, const torch::Tensor& key,
                               const torch::Tensor& value, torch::ScalarType dtype) {
    const bool in_fp32 = query.is_cpu() && query.size(1) <= kShortSequence;
    const torch::ScalarType inner = in_fp32 ? torch::kFloat32 : dtype;
    const AutocastScope no_autocast(query.device().type(), false, dtype);
    const auto lay_out = [&](const torch::Tensor& heads) { return heads.to(inner).transpose(1, 2); };
    const torch::Tensor mixed = at::scaled_dot_product_attention(lay_out(query), lay_out(key), lay_out(value),
                                                                 {}, 0.0, /*is_causal=*/true, std::nullopt,
                                                                 /*enable_gqa=*/key.size(2) != query.size(2));
    return mixed.transpose(1, 2).to(dtype);
}

LlamaBlock::LlamaBlock(const LlamaConfig& config, torch::ScalarType weight_dtype)
    : head_dim_(config.head_dim()), norm_eps_(config.norm_eps) {
    const std::int64_t dim = config.dim;
    const std::int64_t kv_dim = config.kv_heads * head_dim_;
    attention_norm_ = add_weight(*this, "input_layernorm", {dim}, weight_dtype);
    torch::nn::Module& attention = add_scope(*this, "self_attn");
    query_ = add_weight(attention, "q_proj", {dim, dim}, weight_dtype);
    key_ = add_weight(attention, "k_proj", {kv_dim, dim}, weight_dtype);
    value_ = add_weight(attention, "v_proj", {kv_dim, dim}, weight_dtype);
    attention_output_ = add_weight(attention, "o_proj", {dim, dim}, weight_dtype);
    feed_forward_norm_ = add_weight(*this, "post_attention_layernorm", {dim}, weight_dtype);
    torch::nn::Module& feed_forward = add_scope(*this, "mlp");
    gate_ = add_weight(feed_forward, "gate_proj", {config.hidden, dim}, weight_dtype);
    up_ = add_weight(feed_forward, "up_proj", {config.hidden, dim}, weight_dtype);
    down_ = add_weight(feed_forward, "down_proj", {dim, config.hidden}, weight_dtype);
}

torch::Tensor LlamaBlock::attend(const torch::Tensor& x, const torch::Tensor& rope,
                                 torch::ScalarType product_dtype) const {
    const auto heads = [&](const torch::Tensor& weight) {
        return torch::linear(x, weight).unflatten(-1, {-1, head_dim_});
    };
    const torch::Tensor mixed = causal_attention(apply_rope(heads(query_), rope),
                                                 apply_rope(heads(key_), rope), heads(value_), product_dtype);
    return torch::linear(mixed.flatten(2), attention_output_);
}

torch::Tensor LlamaBlock::feed_forward(const torch::Tensor& x) const {
    return torch::linear(torch::silu(torch::linear(x, gate_)) * torch::linear(x, up_), down_);
}

torch::Tensor LlamaBlock::forward(const torch::Tensor& x, const torch::Tensor& rope,
                                  torch::ScalarType product_dtype) const {
    const torch::Tensor attended = x + attend(normalise(x, attention_norm_, norm_eps_), rope, product_dtype);
    return attended + feed_forward(normalise(attended, feed_forward_norm_, norm_eps_));
}

Llama::Llama(const LlamaConfig& config, const ModelBuild& build) : config_(config), build_(build) {
    validate(config);
    const torch::ScalarType dtype =
        build.precision == Precision::kBfloat16 ? torch::kBFloat16 : torch::kFloat32;
    torch::nn::Module& body = add_scope(*this, "model");
    embedding_ = add_weight(body, "embed_tokens", {config.vocabulary_size, config.dim}, dtype);
    torch::nn::Module& layers = add_scope(body, "layers");
    for (std::int64_t layer = 0; layer < config.layers; ++layer) {
        blocks_.push_back(
            layers.register_module(std::to_string(layer), std::make_shared<LlamaBlock>(config, dtype)));
        block_parameters_.push_back(blocks_.back()->parameters());
    }
    final_norm_ = add_weight(body, "norm", {config.dim}, dtype);
    output_ =
        config.tied ? embedding_ : add_weight(*this, "lm_head", {config.vocabulary_size, config.dim}, dtype);
    initialise(build.seed);
}

void Llama::initialise(std::uint64_t seed) {
    const torch::NoGradGuard no_grad;
    at::Generator generator = at::detail::createCPUGenerator(seed);
    const double residual_deviation =
        kInitialDeviation / std::sqrt(2.0 * static_cast<double>(config_.layers));
    for (const auto& item : named_parameters()) {
        torch::Tensor parameter = item.value();
        if (parameter.dim() < 2) {
            parameter.fill_(1.0);
            continue;
        }
        const bool residual = item.key().find("o_proj") != std::string::npos ||
                              item.key().find("down_proj") != std::string::npos;
        torch::Tensor drawn = torch::empty(parameter.sizes(), torch::kFloat32);
        drawn.normal_(0.0, residual ? residual_deviation : kInitialDeviation, generator);
        parameter.copy_(drawn);
    }
}

torch::ScalarType Llama::product_dtype() const {
    return build_.precision == Precision::kFp32 ? torch::kFloat32 : torch::kBFloat16;
}

torch::Tensor Llama::hidden_states(const torch::Tensor& inputs) {
    if (inputs.dim() != 2 || inputs.scalar_type() != torch::kInt64) {
        throw InvalidArgument("llama: the inputs must be int64 tokens of shape (batch, sequence)");
    }
    if (!rope_.defined() || rope_.size(1) < inputs.size(1) || rope_.device() != inputs.device()) {
        rope_ = rope_table(inputs.size(1), config_.head_dim(), config_.rope_theta).to(inputs.device());
    }
    torch::Tensor x = torch::embedding(embedding_, inputs);
    for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
        const auto body = [block = blocks_[layer], rope = rope_, dtype = product_dtype()](
                              const torch::Tensor& input) { return block->forward(input, rope, dtype); };
        x = build_.activation_checkpointing ? recompute_in_backward(body, x, block_parameters_[layer])
                                            : body(x);
    }
    return normalise(x, final_norm_, config_.norm_eps);
}

torch::Tensor Llama::forward(const torch::Tensor& inputs, const torch::Tensor& targets) {
    const AutocastScope autocast(inputs.device().type(), build_.precision == Precision::kFp32Autocast,
                                 torch::kBFloat16);
    const torch::Tensor hidden = hidden_states(inputs).flatten(0, 1);
    return token_loss(hidden, output_, targets.flatten(), product_dtype());
}

std::int64_t Llama::autocast_copy_bytes() const {
    if (build_.precision != Precision::kFp32Autocast) {
        return 0;
    }
    // Autograd keeps the copy of every matrix of a block; recomputation has one block at a time. The
    // output projection is cast for the time of the loss only, while all of them are there; the
    // embedding is looked up, not cast.
    std::int64_t elements = 0;
    for (const torch::Tensor& parameter : block_parameters_.front()) {
        elements += parameter.dim() < 2 ? 0 : parameter.numel();
    }
    const std::int64_t blocks = build_.activation_checkpointing ? 1 : config_.layers;
    return 2 * (blocks * elements + output_.numel());
}

torch::Tensor Llama::logits(const torch::Tensor& inputs) {
    const AutocastScope autocast(inputs.device().type(), build_.precision == Precision::kFp32Autocast,
                                 torch::kBFloat16);
    return torch::linear(hidden_states(inputs), output_).to(torch::kFloat32);
}

}  // namespace flashoptim::trainer
