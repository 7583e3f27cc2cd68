// Models: sizes, the forward pass against an independent fp32 implementation, activation
// checkpointing, the sliced loss.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

#include "flashoptim/error.h"
#include "flashoptim/libtorch_headers.h"
#include "trainer/models/llama.h"
#include "trainer/models/recompute.h"
#include "trainer/models/token_loss.h"

namespace flashoptim::trainer {
namespace {

LlamaConfig tiny() {
    LlamaConfig config;
    config.vocabulary_size = 64;
    config.dim = 32;
    config.layers = 2;
    config.heads = 4;
    config.kv_heads = 2;
    config.hidden = 48;
    return config;
}

ModelBuild build(Precision precision, bool activation_checkpointing = false, std::uint64_t seed = 1) {
    ModelBuild result;
    result.precision = precision;
    result.activation_checkpointing = activation_checkpointing;
    result.seed = seed;
    return result;
}

torch::Tensor tokens(std::int64_t batch, std::int64_t sequence, std::int64_t seed) {
    torch::manual_seed(static_cast<std::uint64_t>(seed));
    return torch::randint(0, 64, {batch, sequence}, torch::kInt64);
}

std::map<std::string, torch::Tensor> gradients(Model& model, const torch::Tensor& inputs,
                                               const torch::Tensor& targets) {
    model.zero_grad();
    model.forward(inputs, targets).backward();
    std::map<std::string, torch::Tensor> result;
    for (const auto& item : model.named_parameters()) {
        result[item.key()] = item.value().grad().clone();
    }
    return result;
}

// Llama as its paper's figures describe it, in fp32, one head and one position at a time;
// shares no code with the model.
torch::Tensor naive_logits(const LlamaConfig& config, const std::map<std::string, torch::Tensor>& weights,
                           const torch::Tensor& tokens_of_one_row) {
    const std::int64_t length = tokens_of_one_row.size(0);
    const std::int64_t size = config.head_dim();
    const auto norm = [&](const torch::Tensor& x, const std::string& name) {
        return x / (x.pow(2).mean(-1, true) + config.norm_eps).sqrt() * weights.at(name);
    };
    const auto rotate = [&](const torch::Tensor& vector, std::int64_t position) {
        torch::Tensor result = vector.clone();
        for (std::int64_t i = 0; i < size / 2; ++i) {
            const double angle =
                static_cast<double>(position) *
                std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(size));
            const double a = vector[i].item<double>();
            const double b = vector[i + size / 2].item<double>();
            result[i] = a * std::cos(angle) - b * std::sin(angle);
            result[i + size / 2] = a * std::sin(angle) + b * std::cos(angle);
        }
        return result;
    };
    torch::Tensor x = weights.at("model.embed_tokens.weight").index_select(0, tokens_of_one_row);
    for (std::int64_t layer = 0; layer < config.layers; ++layer) {
        const std::string prefix = "model.layers." + std::to_string(layer) + ".";
        const torch::Tensor a = norm(x, prefix + "input_layernorm.weight");
        const torch::Tensor q = a.matmul(weights.at(prefix + "self_attn.q_proj.weight").t());
        const torch::Tensor k = a.matmul(weights.at(prefix + "self_attn.k_proj.weight").t());
        const torch::Tensor v = a.matmul(weights.at(prefix + "self_attn.v_proj.weight").t());
        torch::Tensor mixed = torch::zeros({length, config.dim});
        for (std::int64_t head = 0; head < config.heads; ++head) {
            const std::int64_t shared = head / (config.heads / config.kv_heads);
            for (std::int64_t to = 0; to < length; ++to) {
                const torch::Tensor query = rotate(q[to].narrow(0, head * size, size), to);
                torch::Tensor score = torch::empty({to + 1});
                for (std::int64_t from = 0; from <= to; ++from) {
                    const torch::Tensor key = rotate(k[from].narrow(0, shared * size, size), from);
                    score[from] = query.dot(key) / std::sqrt(static_cast<double>(size));
                }
                const torch::Tensor share = score.softmax(0);
                mixed[to].narrow(0, head * size, size) =
                    share.matmul(v.narrow(0, 0, to + 1).narrow(1, shared * size, size));
            }
        }
        x = x + mixed.matmul(weights.at(prefix + "self_attn.o_proj.weight").t());
        const torch::Tensor f = norm(x, prefix + "post_attention_layernorm.weight");
        const torch::Tensor gate = f.matmul(weights.at(prefix + "mlp.gate_proj.weight").t());
        const torch::Tensor up = f.matmul(weights.at(prefix + "mlp.up_proj.weight").t());
        x = x + (gate * gate.sigmoid() * up).matmul(weights.at(prefix + "mlp.down_proj.weight").t());
    }
    return norm(x, "model.norm.weight").matmul(weights.at("lm_head.weight").t());
}

// A preset whose announced size differs from what is allocated makes every memory table of the trainer wrong.
TEST(Registry, ParameterCountsEqualWhatModelsAllocate) {
    for (const char* name : {"llama-tiny", "llama-1m", "llama-3m"}) {
        ModelOptions options;
        options.preset = name;
        for (const bool tied : {false, true}) {
            options.tied = tied;
            const auto model = make_model(options, build(Precision::kBfloat16));
            std::int64_t allocated = 0;
            for (const torch::Tensor& parameter : model->parameters()) {
                allocated += parameter.numel();
            }
            EXPECT_EQ(allocated, parameter_count(options)) << name;
        }
    }
}

// The large presets claim to be the published models; their published sizes say whether they are.
TEST(Registry, LargePresetsHaveThePublishedSizes) {
    const auto count = [](const char* name) {
        ModelOptions options;
        options.preset = name;
        return parameter_count(options);
    };
    EXPECT_EQ(count("llama-1b"), 1'235'814'400);
    EXPECT_EQ(count("llama-3b"), 3'212'749'824);
    EXPECT_EQ(count("llama-8b"), 8'030'261'248);
    std::int64_t previous = 0;
    for (const PresetInfo& preset : presets()) {
        EXPECT_GT(preset.parameters, previous) << preset.name;
        previous = preset.parameters;
    }
}

// A typing error in the preset's name must say what can be typed.
TEST(Registry, UnknownPresetNamesTheKnownOnes) {
    ModelOptions options;
    options.preset = "llama-2m";
    try {
        llama_config(options);
        FAIL() << "accepted";
    } catch (const InvalidArgument& error) {
        EXPECT_NE(std::string(error.what()).find("'llama-2m'"), std::string::npos);
        EXPECT_NE(std::string(error.what()).find("llama-1m"), std::string::npos);
    }
}

TEST(Registry, ImpossibleShapesAreRefusedByField) {
    LlamaConfig odd = tiny();
    odd.heads = 5;
    EXPECT_THROW(validate(odd), InvalidArgument);
    LlamaConfig groups = tiny();
    groups.kv_heads = 3;
    EXPECT_THROW(validate(groups), InvalidArgument);
    LlamaConfig empty = tiny();
    empty.vocabulary_size = 0;
    EXPECT_THROW(validate(empty), InvalidArgument);
}

// A wrong rotation, mask, head grouping or norm trains to a worse loss without any error.
TEST(Llama, LogitsEqualANaiveImplementation) {
    LlamaConfig config = tiny();
    Llama model(config, build(Precision::kFp32));
    std::map<std::string, torch::Tensor> weights;
    {
        const torch::NoGradGuard no_grad;
        for (const auto& item : model.named_parameters()) {
            torch::Tensor parameter = item.value();
            parameter.mul_(parameter.dim() < 2 ? 1.3 : 8.0);  // away from the flat start, so that errors show
            weights[item.key()] = parameter.detach();
        }
        const torch::Tensor input = tokens(2, 7, 3);
        const torch::Tensor ours = model.logits(input);
        for (std::int64_t row = 0; row < 2; ++row) {
            const torch::Tensor naive = naive_logits(config, weights, input[row]);
            // Sums of at most 64 terms of fp32, four layers deep: 64 * 4 * 2^-24 relative, taken four times.
            EXPECT_LE((ours[row] - naive).abs().max().item<double>(),
                      6e-5 * naive.abs().max().item<double>());
        }
    }
}

// A token must not see its future, also where attention runs in its other precision (longer than 128).
TEST(Llama, LaterTokensDoNotChangeEarlierLogits) {
    Llama model(tiny(), build(Precision::kBfloat16));
    const torch::NoGradGuard no_grad;
    for (const std::int64_t length : {16, 160}) {
        torch::Tensor input = tokens(1, length, 5);
        const torch::Tensor before = model.logits(input).clone();
        input[0][length - 1] = (input[0][length - 1] + 1) % 64;
        const torch::Tensor after = model.logits(input);
        EXPECT_TRUE(torch::equal(before.narrow(1, 0, length - 1), after.narrow(1, 0, length - 1))) << length;
        EXPECT_TRUE(after.isfinite().all().item<bool>()) << length;
        EXPECT_FALSE(torch::equal(before.narrow(1, length - 1, 1), after.narrow(1, length - 1, 1))) << length;
    }
}

// The fp32 reference and the bf16 run are compared with each other: they must start as the same model.
TEST(Llama, PrecisionsStartAlike) {
    const auto reference = std::make_shared<Llama>(tiny(), build(Precision::kFp32Autocast));
    const auto half = std::make_shared<Llama>(tiny(), build(Precision::kBfloat16));
    const auto wide = reference->named_parameters();
    for (const auto& item : half->named_parameters()) {
        EXPECT_EQ(item.value().scalar_type(), torch::kBFloat16);
        EXPECT_EQ(wide[item.key()].scalar_type(), torch::kFloat32);
        EXPECT_TRUE(torch::equal(wide[item.key()].to(torch::kBFloat16), item.value())) << item.key();
    }
    const torch::Tensor input = tokens(4, 16, 1);
    const torch::Tensor target = tokens(4, 16, 2);
    const torch::Tensor loss = half->forward(input, target);
    EXPECT_EQ(loss.scalar_type(), torch::kFloat32);
    // ln 64 = 4.1589 for uniform predictions; logits of the start are within a few hundredths of zero.
    EXPECT_NEAR(loss.item<double>(), std::log(64.0), 0.05);
    EXPECT_NEAR(reference->forward(input, target).item<double>(), loss.item<double>(), 0.005);
}

// One matrix with two uses: both contributions must reach it, and it must be counted and stepped once.
TEST(Llama, TiedOutputIsOneParameterWithBothGradients) {
    LlamaConfig config = tiny();
    Llama apart(config, build(Precision::kFp32));
    config.tied = true;
    Llama tied(config, build(Precision::kFp32));
    EXPECT_EQ(apart.parameters().size(), tied.parameters().size() + 1);
    {
        const torch::NoGradGuard no_grad;
        auto from = tied.named_parameters();
        for (const auto& item : apart.named_parameters()) {
            torch::Tensor to = item.value();
            to.copy_(from[item.key() == "lm_head.weight" ? "model.embed_tokens.weight" : item.key()]);
        }
    }
    const torch::Tensor input = tokens(2, 16, 1);
    const torch::Tensor target = tokens(2, 16, 2);
    auto separate = gradients(apart, input, target);
    auto shared = gradients(tied, input, target);
    const torch::Tensor sum = separate["model.embed_tokens.weight"] + separate["lm_head.weight"];
    EXPECT_TRUE(torch::allclose(shared["model.embed_tokens.weight"], sum, 1e-5, 1e-8));
}

class Checkpointing : public testing::TestWithParam<Precision> {};

// Activation checkpointing is a choice of memory only: a run with it must be the run without it.
TEST_P(Checkpointing, GradientsAreTheSameBits) {
    for (const bool tied : {false, true}) {
        LlamaConfig config = tiny();
        config.tied = tied;
        Llama plain(config, build(GetParam(), false));
        Llama recomputed(config, build(GetParam(), true));
        for (const std::int64_t length : {16, 160}) {
            const torch::Tensor input = tokens(2, length, 1);
            const torch::Tensor target = tokens(2, length, 2);
            const auto expected = gradients(plain, input, target);
            const auto actual = gradients(recomputed, input, target);
            ASSERT_EQ(expected.size(), actual.size());
            for (const auto& [name, gradient] : expected) {
                EXPECT_TRUE(torch::equal(gradient, actual.at(name))) << name << " at length " << length;
                EXPECT_GT(gradient.abs().max().item<double>(), 0.0) << name;
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Precisions, Checkpointing,
                         testing::Values(Precision::kBfloat16, Precision::kFp32Autocast, Precision::kFp32));

class CountingHook : public torch::autograd::PostAccumulateGradHook {
public:
    explicit CountingHook(int& count) : count_(count) {}
    void operator()(const torch::autograd::Variable& tensor) override {
        ++count_;
        torch::Tensor parameter = tensor;
        parameter.mutable_grad().reset();
    }

private:
    int& count_;
};

// Gradient release steps a parameter inside such a hook: a second call would step it twice.
TEST(Recompute, HooksFireOncePerParameterAlsoWhenPartsShareOne) {
    LlamaConfig config = tiny();
    config.tied = true;
    Llama model(config, build(Precision::kBfloat16, true));
    std::map<std::string, int> calls;
    for (const auto& item : model.named_parameters()) {
        torch::autograd::impl::set_post_acc_grad_hooks(item.value(),
                                                       std::make_unique<CountingHook>(calls[item.key()]));
    }
    model.forward(tokens(2, 16, 1), tokens(2, 16, 2)).backward();
    for (const auto& [name, count] : calls) {
        EXPECT_EQ(count, 1) << name;
    }

    const torch::Tensor shared = torch::randn({3, 3}).requires_grad_();
    const auto body = [&](const torch::Tensor& x) { return torch::tanh(x.mm(shared)); };
    const torch::Tensor start = torch::randn({2, 3});
    body(body(start)).sum().backward();
    const torch::Tensor expected = shared.grad().clone();
    shared.mutable_grad().reset();
    recompute_in_backward(body, recompute_in_backward(body, start, {shared}), {shared}).sum().backward();
    EXPECT_TRUE(torch::equal(shared.grad(), expected));
    shared.mutable_grad().reset();
    int count = 0;
    torch::autograd::impl::set_post_acc_grad_hooks(shared, std::make_unique<CountingHook>(count));
    recompute_in_backward(body, recompute_in_backward(body, start, {shared}), {shared}).sum().backward();
    EXPECT_EQ(count, 1);
}

// The sliced loss must be cross entropy, whatever the slice, or large vocabularies train another objective.
TEST(TokenLoss, EqualsCrossEntropyForAnySlice) {
    torch::manual_seed(7);
    const torch::Tensor hidden = torch::randn({37, 16}, torch::kFloat64);
    const torch::Tensor weight = torch::randn({50, 16}, torch::kFloat64);
    const torch::Tensor targets = torch::randint(0, 50, {37}, torch::kInt64);
    const torch::Tensor h = hidden.clone().requires_grad_();
    const torch::Tensor w = weight.clone().requires_grad_();
    const torch::Tensor expected = torch::cross_entropy_loss(h.mm(w.t()), targets);
    (3.0 * expected).backward();
    for (const std::int64_t slice : {50, 500, 1 << 20}) {
        const torch::Tensor a = hidden.to(torch::kFloat32).requires_grad_();
        const torch::Tensor b = weight.to(torch::kFloat32).requires_grad_();
        const torch::Tensor loss = token_loss(a, b, targets, torch::kFloat32, slice);
        (3.0 * loss).backward();
        EXPECT_NEAR(loss.item<double>(), expected.item<double>(), 1e-5);
        // fp32 against float64: sums of at most 50 terms, 50 * 2^-24 = 3e-6 relative to terms of size 1.
        EXPECT_TRUE(torch::allclose(a.grad().to(torch::kFloat64), h.grad(), 1e-5, 3e-6)) << slice;
        EXPECT_TRUE(torch::allclose(b.grad().to(torch::kFloat64), w.grad(), 1e-5, 3e-6)) << slice;
    }
}

// Slices are summed in fp32: a bf16 sum over 256 slices would lose what is below 2^-8 of the total.
TEST(TokenLoss, WeightGradientOfManySlicesIsRoundedOnce) {
    torch::manual_seed(8);
    const torch::Tensor hidden = torch::randn({256, 16}).to(torch::kBFloat16);
    const torch::Tensor weight = torch::randn({8, 16}).to(torch::kBFloat16);
    const torch::Tensor targets = torch::randint(0, 8, {256}, torch::kInt64);
    const auto gradient = [&](std::int64_t slice) {
        const torch::Tensor w = weight.clone().requires_grad_();
        token_loss(hidden.clone().requires_grad_(), w, targets, torch::kBFloat16, slice).backward();
        return w.grad().to(torch::kFloat32);
    };
    const torch::Tensor whole = gradient(1 << 20);
    const torch::Tensor sliced = gradient(8);
    // One token per slice: 256 products rounded to bf16 (2^-9 relative of each, errors of both signs),
    // one final rounding of 2^-9.
    EXPECT_LE((whole - sliced).norm().item<double>(),
              2.0 * std::ldexp(1.0, -9) * whole.norm().item<double>() + 1e-6);
}

}  // namespace
}  // namespace flashoptim::trainer
