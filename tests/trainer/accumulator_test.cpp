// Gradients added up in fp32: the sum of micro-batches is the batch.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <vector>

#include "flashoptim/error.h"
#include "flashoptim/libtorch_headers.h"
#include "trainer/gradient_accumulator.h"
#include "trainer/models/llama.h"

namespace flashoptim::trainer {
namespace {

// In fp32, where only the order of sums differs.
TEST(Accumulator, FourMicroBatchesAreOneBatch) {
    LlamaConfig config = llama_config({"llama-tiny", std::nullopt, std::nullopt});
    ModelBuild build;
    build.precision = Precision::kFp32;
    Llama model(config, build);
    torch::manual_seed(3);
    const torch::Tensor inputs = torch::randint(0, 256, {8, 16}, torch::kInt64);
    const torch::Tensor targets = torch::randint(0, 256, {8, 16}, torch::kInt64);
    model.forward(inputs, targets).backward();
    std::vector<torch::Tensor> expected;
    for (const torch::Tensor& parameter : model.parameters()) {
        expected.push_back(parameter.grad().clone());
    }
    model.zero_grad();
    {
        GradientAccumulator accumulator(model.parameters());
        EXPECT_THROW(GradientAccumulator(model.parameters()), InvalidArgument);
        for (int round = 0; round < 2; ++round) {
            accumulator.clear();
            for (std::int64_t part = 0; part < 4; ++part) {
                (model.forward(inputs.narrow(0, 2 * part, 2), targets.narrow(0, 2 * part, 2)) * 0.25)
                    .backward();
            }
            const auto parameters = model.parameters();
            for (std::size_t index = 0; index < parameters.size(); ++index) {
                EXPECT_FALSE(parameters[index].grad().defined());
                const torch::Tensor sum = accumulator.sum(index);
                // fp32 sums of 128 tokens in another order: 128 * 2^-24 = 8e-6 of the norm.
                EXPECT_LE((sum - expected[index]).norm().item<double>(),
                          1e-5 * expected[index].norm().item<double>());
            }
        }
    }
    model.forward(inputs, targets).backward();  // the hooks went with the accumulator
    EXPECT_TRUE(model.parameters().front().grad().defined());
}

// 16-bit sums stop growing: 1 + 2^-9 is 1 in bf16, however often it is added.
TEST(Accumulator, KeepsContributionsThatBf16SumsLose) {
    const torch::Tensor weight = torch::ones({4}, torch::kBFloat16).requires_grad_();
    const torch::Tensor plain = torch::ones({4}, torch::kBFloat16).requires_grad_();
    GradientAccumulator accumulator({weight});
    EXPECT_FALSE(accumulator.sum(0).defined());
    const auto contribute = [](const torch::Tensor& to, double value) { (to * value).sum().backward(); };
    contribute(weight, 1.0);
    contribute(plain, 1.0);
    for (int index = 0; index < 256; ++index) {
        contribute(weight, std::ldexp(1.0, -9));
        contribute(plain, std::ldexp(1.0, -9));
    }
    EXPECT_EQ(accumulator.sum(0).scalar_type(), torch::kFloat32);
    EXPECT_TRUE(torch::equal(accumulator.sum(0), torch::full({4}, 1.5F)));
    EXPECT_TRUE(torch::equal(plain.grad(), torch::ones({4}, torch::kBFloat16)));
    EXPECT_EQ(accumulator.bytes(), 16);
}

}  // namespace
}  // namespace flashoptim::trainer
