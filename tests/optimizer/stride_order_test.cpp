// Tensors are stepped where they lie, whatever their stride order, and gradients may come in any other. If
// these fail, convolution weights in channels-last order train wrongly.
#include "../support/step_cases.h"

namespace flashoptim {

namespace {

using Extents = std::vector<std::int64_t>;

OptimizerOptions all_quantized() {
    OptimizerOptions options;
    options.storage.min_quantized_numel = options.storage.min_quantized_numel_1d = 0;
    return options;
}

/// Steps a weight of the given shape and strides whose memory, and whose gradient's memory,
/// follow from the seed alone.
std::vector<std::byte> bytes_in_memory_order(const RuleCase& rule, const Extents& shape,
                                             const Extents& strides) {
    Noise noise(4);
    Tensor weight(DType::kBFloat16, shape, strides), gradient(DType::kBFloat16, shape, strides);
    weight.fill([&] { return noise.normal(); });
    Optimizer optimizer(rule.rule, rule.hyperparameters, all_quantized());
    optimizer.add_parameter(weight.view());
    for (int t = 0; t < 3; ++t) {
        gradient.fill([&] { return noise.wide(); });
        optimizer.set_gradient(0, gradient.view());
        optimizer.step();
    }
    return bytes_of_numbers(optimizer);
}

}  // namespace

TEST(StrideOrder, OnlyTheOrderInMemoryCounts) {
    for (const auto& rule : rule_cases()) {
        // Channels last of [N, C, H, W] lies as a row-major [N, H, W, C].
        EXPECT_TRUE(bytes_in_memory_order(rule, {3, 8, 5, 6}, {240, 1, 48, 8}) ==
                    bytes_in_memory_order(rule, {3, 5, 6, 8}, {}))
            << rule.name;
        EXPECT_TRUE(bytes_in_memory_order(rule, {40, 70}, {1, 40}) ==
                    bytes_in_memory_order(rule, {70, 40}, {}))
            << rule.name;
    }
}

TEST(StrideOrder, GradientsInAnotherOrderOrWithHolesEqualOrderedOnes) {
    const Extents shape = {6, 10, 7};
    const auto rule = rule_cases()[4];
    for (const Extents& weight_strides : {Extents{70, 7, 1}, Extents{70, 1, 10}}) {
        for (const Extents& gradient_strides : {Extents{70, 7, 1}, Extents{1, 42, 6}, Extents{70, 1, 10}}) {
            std::vector<std::vector<std::byte>> results;
            for (const bool ordered : {true, false}) {
                Noise noise(8);
                Tensor weight(DType::kBFloat16, shape, weight_strides);
                weight.fill([&] { return noise.normal(); });
                Optimizer optimizer(rule.rule, rule.hyperparameters, all_quantized());
                optimizer.add_parameter(weight.view());
                for (int t = 0; t < 3; ++t) {
                    Tensor given(DType::kFloat32, shape, gradient_strides),
                        same(DType::kFloat32, shape, weight_strides);
                    given.fill([&] { return noise.wide(); });
                    copy_in_order(given.view(), weight_strides, same.view().data);
                    optimizer.set_gradient(0, ordered ? same.view() : given.view());
                    optimizer.step();
                }
                results.push_back(bytes_of_numbers(optimizer));
            }
            EXPECT_TRUE(results[0] == results[1]);
        }
    }
}

// A bias gradient that autograd hands out as one number for all rows (stride 0), and one that
// lies in every second place.
TEST(StrideOrder, ExpandedAndStridedGradientsAreRead) {
    std::vector<float> row = {1, 2, 3}, spread = {1, 9, 2, 9, 3, 9, 1, 9, 2, 9, 3, 9},
                       plain = {1, 2, 3, 1, 2, 3};
    const std::vector<TensorView> gradients = {{row.data(), DType::kFloat32, {2, 3}, {0, 1}},
                                               {spread.data(), DType::kFloat32, {2, 3}, {6, 2}},
                                               {plain.data(), DType::kFloat32, {2, 3}, {}}};
    for (const auto& gradient : gradients) {
        Tensor weight(DType::kFloat32, {2, 3});
        SGD optimizer({.learning_rate = 1.0});
        optimizer.add_parameter(weight.view());
        optimizer.set_gradient(0, gradient);
        EXPECT_EQ(optimizer.grad_norm(), std::sqrt(28.0));
        optimizer.step();
        EXPECT_EQ(weight.values(), (std::vector<float>{-1, -2, -3, -1, -2, -3}));
    }
}

// The copy in the weight's order is memory that the user pays for: it is reported,
// and freed with the gradient.
TEST(StrideOrder, CopiesOfGradientsAreCounted) {
    Tensor weight(DType::kBFloat16, {10, 20}), gradient(DType::kBFloat16, {10, 20}, {1, 10});
    SGD optimizer;
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    optimizer.step();
    EXPECT_EQ(optimizer.memory_report().gradients, 2U * 400U);
    optimizer.clear_gradient(0);
    EXPECT_EQ(optimizer.memory_report().gradients, 0U);
    Tensor ordered(DType::kBFloat16, {10, 20});
    optimizer.set_gradient(0, ordered.view());
    EXPECT_EQ(optimizer.memory_report().gradients, 400U);
}

}  // namespace flashoptim
