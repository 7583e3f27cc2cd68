// The norm that gradients are clipped by. If these fail, a clipped run depends on the machine, or one bad
// element stops all clipping.
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "../support/step_cases.h"

namespace flashoptim {

namespace {

/// Gradients of several tensors: shorter and longer than the blocks of the norm, in every dtype.
struct Model {
    explicit Model(int threads) : optimizer(Rule::kSGD, {}, options_of(threads)) {
        Noise noise(6);
        const std::vector<std::vector<std::int64_t>> shapes = {{3},        {16384}, {16385},
                                                               {70, 1001}, {255},   {2, 3, 50000}};
        for (const auto& shape : shapes) {
            const auto dtype =
                std::array{DType::kFloat32, DType::kBFloat16, DType::kFloat16}[gradients.size() % 3];
            weights.emplace_back(DType::kFloat32, shape);
            gradients.emplace_back(dtype, shape).fill([&] { return noise.normal() * 0.1; });
        }
        for (std::size_t n = 0; n < weights.size(); ++n) {
            optimizer.add_parameter(weights[n].view());
            optimizer.set_gradient(n, gradients[n].view());
        }
    }
    static OptimizerOptions options_of(int threads) {
        OptimizerOptions options;
        options.threads = threads;
        return options;
    }
    std::vector<Tensor> weights, gradients;
    Optimizer optimizer;
};

/// All 64 bits, in characters that mean nothing to a regular expression.
std::string hexadecimal(double value) {
    char text[64];
    std::snprintf(text, sizeof text, "%016llx",
                  static_cast<unsigned long long>(std::bit_cast<std::uint64_t>(value)));
    return text;
}

}  // namespace

TEST(GradientNorm, IsTheSumOfSquaresInDouble) {
    Model model(2);
    long double sum = 0.0L;
    for (const auto& gradient : model.gradients) {
        for (const float g : gradient.values())
            sum += static_cast<long double>(g) * static_cast<long double>(g);
    }
    const auto expected = static_cast<double>(std::sqrt(sum));
    // 400,000 additions in double, in blocks of 1,024 for each of 16 sums: at most about 1,500
    // roundings of 2^-53 on any path.
    EXPECT_NEAR(model.optimizer.grad_norm() / expected, 1.0, 2e-13);
}

TEST(GradientNorm, HasTheSameBitsWithAnyNumberOfThreads) {
    const double expected = Model(1).optimizer.grad_norm();
    for (const int threads : {2, 3, 8}) EXPECT_EQ(Model(threads).optimizer.grad_norm(), expected);
}

// The backend is chosen once for a process, so each runs in a process of its own.
TEST(GradientNormDeathTest, HasTheSameBitsOnEveryBackend) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    const auto expected = hexadecimal(Model(1).optimizer.grad_norm());
    for (const auto backend : available_backends()) {
        EXPECT_EXIT(
            {
                ::setenv("FLASHOPTIM_BACKEND", std::string(name_of(backend)).c_str(), 1);
                std::fprintf(stderr, "norm %s\n", hexadecimal(Model(1).optimizer.grad_norm()).c_str());
                std::exit(0);
            },
            ::testing::ExitedWithCode(0), "norm " + expected)
            << name_of(backend);
    }
}

TEST(GradientNorm, IsTakenTimesTheFactor) {
    Model model(1);
    const double plain = model.optimizer.grad_norm();
    model.optimizer.set_gradient_factor(0x1p-10);
    EXPECT_EQ(model.optimizer.grad_norm(), plain * 0x1p-10);
    model.optimizer.set_gradient_factor(-2.0);
    EXPECT_EQ(model.optimizer.grad_norm(), plain * 2.0);
    model.optimizer.set_gradient_factor(0.0);
    EXPECT_EQ(model.optimizer.grad_norm(), 0.0);
    expect_refused<InvalidArgument>("gradient_factor", [&] { model.optimizer.set_gradient_factor(NAN); });
    expect_refused<InvalidArgument>("gradient_factor",
                                    [&] { model.optimizer.set_gradient_factor(INFINITY); });
}

TEST(GradientNorm, LeavesOutBadElementsAndParametersWithoutGradient) {
    Tensor weight(DType::kFloat32, {6}), gradient(DType::kFloat32, {6});
    SGD optimizer;
    optimizer.add_parameter(weight.view());
    EXPECT_EQ(optimizer.grad_norm(), 0.0);
    optimizer.set_gradient(0, gradient.view());
    const std::vector<float> values = {3.0F, NAN, -4.0F, INFINITY, -0x1p48F, 0.0F};
    for (std::size_t n = 0; n < values.size(); ++n) gradient.set(n, values[n]);
    EXPECT_EQ(optimizer.grad_norm(), 5.0);
    optimizer.clear_gradient(0);
    EXPECT_EQ(optimizer.grad_norm(), 0.0);
}

TEST(GradientNorm, DoesNotOverflowWhereFloatsWould) {
    Tensor weight(DType::kFloat32, {1000}), gradient(DType::kFloat32, {1000});
    gradient.fill([] { return 0x1p47F; });
    SGD optimizer;
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    EXPECT_NEAR(optimizer.grad_norm() / (0x1p47 * std::sqrt(1000.0)), 1.0, 1e-15);
}

// Clipping to norm 1 by the factor is the step of gradients that were clipped beforehand
// (both round the product once).
TEST(GradientNorm, ClipsAsGradientsAreRead) {
    for (const auto& rule : rule_cases()) {
        Noise noise(12);
        Tensor a(DType::kBFloat16, {10, 64}), gradient(DType::kFloat32, {10, 64}),
            clipped(DType::kFloat32, {10, 64});
        a.fill([&] { return noise.normal(); });
        Tensor b = a;
        gradient.fill([&] { return noise.normal(); });
        Optimizer by_factor(rule.rule, rule.hyperparameters), beforehand(rule.rule, rule.hyperparameters);
        by_factor.add_parameter(a.view());
        beforehand.add_parameter(b.view());
        by_factor.set_gradient(0, gradient.view());
        const double coefficient = 1.0 / by_factor.grad_norm();
        by_factor.set_gradient_factor(coefficient);
        for (std::size_t n = 0; n < gradient.numel(); ++n)
            clipped.set(n, gradient.get(n) * static_cast<float>(coefficient));
        beforehand.set_gradient(0, clipped.view());
        by_factor.step();
        beforehand.step();
        EXPECT_TRUE(bytes_of_numbers(by_factor) == bytes_of_numbers(beforehand)) << rule.name;
        EXPECT_NEAR(by_factor.grad_norm(), 1.0, 1e-6);
    }
}

}  // namespace flashoptim
