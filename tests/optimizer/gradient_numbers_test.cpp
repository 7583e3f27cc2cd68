// Loss scale, found_inf and clip coefficient in memory that a step reads when it runs. If these
// fail, mixed-precision training with a loss scaler steps by gradients that are too large, or counts
// steps that it did not make.
#include <limits>

#include "../support/step_cases.h"

namespace flashoptim {

namespace {

/// Two parameters and their optimizer.
struct Training {
    explicit Training(const RuleCase& rule, const OptimizerOptions& options = {})
        : optimizer(rule.rule, rule.hyperparameters, options) {
        Noise noise(4);
        for (const auto& shape : {std::vector<std::int64_t>{40, 96}, {33}}) {
            weights.emplace_back(DType::kBFloat16, shape).fill([&] { return noise.normal(); });
            gradients.emplace_back(DType::kBFloat16, shape);
        }
        for (std::size_t n = 0; n < weights.size(); ++n) {
            optimizer.add_parameter(weights[n].view());
            optimizer.set_gradient(n, gradients[n].view());
        }
    }
    void fill_gradients(std::uint64_t t) {
        Noise noise(50 + t);
        for (auto& gradient : gradients) gradient.fill([&] { return noise.normal(); });
    }
    void expect_same(Training& other) {
        for (std::size_t n = 0; n < weights.size(); ++n) {
            EXPECT_EQ(weights[n].bytes(), other.weights[n].bytes());
            EXPECT_EQ(optimizer.master(n), other.optimizer.master(n));
            EXPECT_EQ(test::moments_of(optimizer, n), test::moments_of(other.optimizer, n));
            EXPECT_EQ(optimizer.step_count(n), other.optimizer.step_count(n));
            EXPECT_EQ(optimizer.bad_elements(n), other.optimizer.bad_elements(n));
        }
    }
    std::vector<Tensor> weights, gradients;
    Optimizer optimizer;
};

class GradientNumbersOfEveryRule : public ::testing::TestWithParam<RuleCase> {};
INSTANTIATE_TEST_SUITE_P(Rules, GradientNumbersOfEveryRule, ::testing::ValuesIn(rule_cases()),
                         [](const auto& rule) { return rule.param.name; });

RuleCase adamw() { return rule_cases()[4]; }

}  // namespace

TEST_P(GradientNumbersOfEveryRule, ScaleAndClipAreTheFactorOfAStep) {
    Training plain(GetParam()), scaled(GetParam());
    float scale = 3.0F;  // its inverse is rounded
    scaled.optimizer.set_grad_scale(&scale);
    for (std::uint64_t t = 0; t < 4; ++t) {
        scale = t < 2 ? 3.0F : 1024.0F;
        plain.fill_gradients(t);
        scaled.fill_gradients(t);
        float factor = 1.0F / scale;
        plain.optimizer.set_gradient_factor(factor);
        if (t % 2 == 0) {  // of this step only
            const double max_norm = t == 0 ? 0.01 : 1e6;
            const double norm = plain.optimizer.grad_norm();
            EXPECT_EQ(*scaled.optimizer.clip_grad_norm(max_norm), norm);
            EXPECT_EQ(scaled.optimizer.grad_norm(), norm) << "the clip coefficient is no part of the norm";
            factor *= static_cast<float>(std::min(1.0, max_norm / (norm + 1e-6)));
            plain.optimizer.set_gradient_factor(factor);
        }
        plain.optimizer.step();
        scaled.optimizer.step();
        plain.expect_same(scaled);
    }
    scaled.optimizer.set_grad_scale(nullptr);
    plain.optimizer.set_gradient_factor(1.0);
    EXPECT_EQ(plain.optimizer.grad_norm(), scaled.optimizer.grad_norm());
}

TEST_P(GradientNumbersOfEveryRule, FoundInfKeepsAStepBack) {
    Training plain(GetParam()), guarded(GetParam());
    float found_inf = 0.0F;
    guarded.optimizer.set_found_inf(&found_inf);
    for (std::uint64_t t = 0; t < 5; ++t) {
        const bool is_kept_back = t == 0 || t == 3;
        found_inf = is_kept_back ? 1.0F : 0.0F;
        plain.fill_gradients(t);
        guarded.fill_gradients(t);
        if (!is_kept_back) plain.optimizer.step();
        EXPECT_EQ(guarded.optimizer.step().skipped, is_kept_back);
        plain.expect_same(guarded);
    }
    found_inf = 1.0F;
    EXPECT_TRUE(guarded.optimizer.step_parameter(1).skipped);
    guarded.optimizer.set_found_inf(nullptr);
    EXPECT_FALSE(guarded.optimizer.step_parameter(1).skipped);
    plain.optimizer.step_parameter(1);
    plain.expect_same(guarded);
}

// An infinity that the loss scaler has found is its business, and no bad gradient of the policy's.
TEST(GradientNumbers, FoundInfGoesBeforeThePolicies) {
    for (const auto policy : {NonFinite::kSkipElement, NonFinite::kSkipStep, NonFinite::kError}) {
        OptimizerOptions options;
        options.nonfinite = policy;
        Training run(adamw(), options);
        run.fill_gradients(1);
        run.gradients[0].set(7, std::numeric_limits<float>::infinity());
        const float found_inf = 1.0F;
        run.optimizer.set_found_inf(&found_inf);
        const auto before = run.weights[0].bytes();
        EXPECT_TRUE(run.optimizer.step().skipped);
        EXPECT_EQ(run.weights[0].bytes(), before);
        EXPECT_EQ(run.optimizer.step_count(0), 0);
        EXPECT_EQ(run.optimizer.bad_elements(0), 0U);
    }
}

// A scale of NaN or zero makes every gradient bad: counted, not stepped.
TEST(GradientNumbers, AScaleThatIsNoneStepsNothing) {
    for (const float scale : {std::numeric_limits<float>::quiet_NaN(), 0.0F}) {
        Training run(adamw());
        run.fill_gradients(1);
        run.optimizer.set_grad_scale(&scale);
        const auto before = run.weights[0].bytes();
        run.optimizer.step();
        EXPECT_EQ(run.weights[0].bytes(), before);
        EXPECT_EQ(run.optimizer.bad_elements(0), run.weights[0].numel());
    }
}

// Gradient release has no norm of all gradients: the coefficient waits for the step that it was computed for.
TEST(GradientNumbers, AClipIsForTheNextStepOfAll) {
    Training plain(adamw()), clipped(adamw());
    for (auto* run : {&plain, &clipped}) run->fill_gradients(1);
    const double norm = *clipped.optimizer.clip_grad_norm(0.5);
    plain.optimizer.step_parameter(0);
    clipped.optimizer.step_parameter(0);
    plain.expect_same(clipped);
    clipped.optimizer.step();
    plain.optimizer.set_gradient_factor(0.5 / (norm + 1e-6));
    plain.optimizer.step();
    plain.expect_same(clipped);
}

// Gradients that stopped a step are gone, and with them what they were to be clipped by.
TEST(GradientNumbers, AClipGoesWithTheGradientsThatStoppedTheStep) {
    for (const auto policy : {NonFinite::kSkipStep, NonFinite::kError}) {
        OptimizerOptions options;
        options.nonfinite = policy;
        Training plain(adamw(), options), clipped(adamw(), options);
        clipped.fill_gradients(1);
        clipped.gradients[0].set(7, std::numeric_limits<float>::infinity());
        clipped.optimizer.clip_grad_norm(0.01);
        if (policy == NonFinite::kError) {
            EXPECT_THROW(clipped.optimizer.step(), NonFiniteError);
        } else {
            EXPECT_TRUE(clipped.optimizer.step().skipped);
        }
        for (auto* training : {&plain, &clipped}) {
            training->fill_gradients(2);
            training->optimizer.step();
        }
        EXPECT_EQ(plain.weights[0].bytes(), clipped.weights[0].bytes());
    }
}

TEST(GradientNumbers, WhatIsNoNormIsNamed) {
    Training run(adamw());
    for (const double norm : {-1.0, std::nan("")}) {
        expect_refused<InvalidArgument>("the maximal norm is", [&] { run.optimizer.clip_grad_norm(norm); });
    }
    run.fill_gradients(1);
    EXPECT_EQ(*run.optimizer.clip_grad_norm(std::numeric_limits<double>::infinity()),
              run.optimizer.grad_norm());
}

}  // namespace flashoptim
