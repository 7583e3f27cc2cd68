// cast_model: 16-bit weights everywhere but where they would break the model.
#include <torch/nn.h>

#include "support.h"

namespace flashoptim::libtorch {
namespace {

torch::nn::Sequential image_model() {
    return torch::nn::Sequential(
        torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3)), torch::nn::BatchNorm2d(8), torch::nn::ReLU(),
        torch::nn::InstanceNorm2d(torch::nn::InstanceNorm2dOptions(8).affine(true).track_running_stats(true)),
        torch::nn::GroupNorm(2, 8), torch::nn::Flatten(), torch::nn::Linear(8 * 6 * 6, 4),
        torch::nn::LayerNorm(torch::nn::LayerNormOptions({4})));
}

torch::Dtype dtype_of(const torch::nn::Module& model, const std::string& name) {
    if (const auto* p = model.named_parameters().find(name)) return p->scalar_type();
    return model.named_buffers()[name].scalar_type();
}

/// Running statistics that are kept in 16 bits stall: an update by 0.1 % is less than half an ulp.
TEST(CastModel, KeepsLayersWithRunningStatistics) {
    auto model = image_model();
    cast_model(*model);
    EXPECT_EQ(dtype_of(*model, "0.weight"), torch::kBFloat16);
    EXPECT_EQ(dtype_of(*model, "6.bias"), torch::kBFloat16);
    EXPECT_EQ(dtype_of(*model, "4.weight"), torch::kBFloat16);
    EXPECT_EQ(dtype_of(*model, "7.weight"), torch::kBFloat16);
    for (const auto* name :
         {"1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.running_var"}) {
        EXPECT_EQ(dtype_of(*model, name), torch::kFloat32) << name;
    }
    EXPECT_EQ(dtype_of(*model, "1.num_batches_tracked"), torch::kInt64);
}

/// The mixture must run forward and backward, in training and in evaluation, and train.
TEST(CastModel, MixedModelTrains) {
    for (const auto dtype : {torch::kBFloat16, torch::kFloat16}) {
        torch::manual_seed(2);
        auto model = image_model();
        cast_model(*model, dtype);
        AdamW optimizer(model->parameters(), 1e-2);
        const auto input = torch::randn({4, 3, 8, 8}).to(dtype);
        for (int step = 0; step < 3; ++step) {
            optimizer.zero_grad();
            const auto output = model->forward(input);
            EXPECT_EQ(output.scalar_type(), dtype);
            output.to(torch::kFloat32).square().mean().backward();
            optimizer.step();
        }
        EXPECT_GT(model->named_buffers()["1.running_mean"].abs().sum().item<double>(), 0.0);
        model->eval();
        EXPECT_TRUE(model->forward(input).isfinite().all().item<bool>());
    }
}

TEST(CastModel, KeepsWhatIsNamed) {
    auto model = image_model();
    cast_model(*model, torch::kBFloat16, {.keep = {"6", "7.*", "0.bias"}});
    for (const auto* name : {"6.weight", "6.bias", "7.weight", "7.bias", "0.bias"}) {
        EXPECT_EQ(dtype_of(*model, name), torch::kFloat32) << name;
    }
    EXPECT_EQ(dtype_of(*model, "0.weight"), torch::kBFloat16);
}

/// A misspelt name would silently cast what was to be kept.
TEST(CastModel, RefusesNamesOfNothingAndOtherDtypes) {
    auto model = image_model();
    EXPECT_TRUE(contains(
        message_of<InvalidArgument>([&] { cast_model(*model, torch::kBFloat16, {.keep = {"head.*"}}); }),
        "head.*"));
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { cast_model(*model, torch::kInt8); }), "int8"));
    EXPECT_EQ(dtype_of(*model, "0.weight"), torch::kFloat32) << "a refused cast changed the model";
}

/// Two layers over one weight.
struct Tied : torch::nn::Module {
    Tied() : first(register_module("first", torch::nn::Linear(4, 4))) {
        weight = register_parameter("weight", first->weight);
    }
    torch::nn::Linear first;
    torch::Tensor weight;
};

/// What was tied stays tied, and tensors that somebody holds stay the model's.
TEST(CastModel, KeepsTiesAndGradients) {
    Tied model;
    model.weight.mutable_grad() = torch::ones({4, 4});
    cast_model(model);
    EXPECT_TRUE(model.weight.is_same(model.first->weight));
    EXPECT_EQ(model.weight.scalar_type(), torch::kBFloat16);
    EXPECT_EQ(model.weight.grad().scalar_type(), torch::kBFloat16);
    EXPECT_TRUE(model.weight.requires_grad());
    Tied kept;
    cast_model(kept, torch::kBFloat16, {.keep = {"first"}});
    EXPECT_EQ(kept.weight.scalar_type(), torch::kFloat32)
        << "a weight that one of its users must keep is kept";
}

}  // namespace
}  // namespace flashoptim::libtorch
