// Every rule against an independent reference in double, written from the papers and torch.optim's
// documentation. If one of these fails, the optimizer is another one than its name says.
#include "reference.h"

#include <algorithm>
#include <array>

#include "../support/step_cases.h"
#include "flashoptim/rule/adan.h"

namespace flashoptim {

namespace {

double norm(const std::vector<double>& x) {
    double sum = 0.0;
    for (const double e : x) sum += e * e;
    return std::sqrt(sum);
}

/// ||ours - reference|| / ||reference||; 0 where both are 0.
double relative_difference(const std::vector<float>& ours, const std::vector<double>& theirs) {
    if (ours.empty()) return 0.0;
    std::vector<double> difference(ours.size());
    for (std::size_t n = 0; n < ours.size(); ++n) difference[n] = static_cast<double>(ours[n]) - theirs[n];
    const double apart = norm(difference);
    return apart == 0.0 ? 0.0 : apart / norm(theirs);
}
/// The largest of weights and moments; NaN where any of them has one.
double relative_difference(const Optimizer& optimizer, const Reference& reference) {
    return test::largest_magnitude(std::array{relative_difference(optimizer.master(0), reference.w),
                                              relative_difference(optimizer.moment(0, 0), reference.m),
                                              relative_difference(optimizer.moment(0, 1), reference.v),
                                              relative_difference(optimizer.moment(0, 2), reference.slow)});
}

/// 1,000 steps of noisy gradients with fp32 weights and moments.
double difference_after_1000_steps(Rule rule, Hyperparameters h) {
    constexpr std::int64_t kCount = 300;
    OptimizerOptions options;
    options.storage.format = Format::kFloat32;
    Noise noise(21);
    Tensor weight(DType::kFloat32, {kCount}), gradient(DType::kFloat32, {kCount});
    weight.fill([&] { return noise.normal(); });
    Reference reference(weight.values());
    Optimizer optimizer(rule, h, options);
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    const double peak = h.learning_rate;
    h.initial_learning_rate = peak;
    for (int t = 0; t < 1000; ++t) {
        gradient.fill([&] { return noise.normal() + 0.1; });
        h.learning_rate = peak * (1.0 - t / 2000.0);  // a schedule
        optimizer.set_learning_rate(h.learning_rate);
        optimizer.step();
        reference.step(rule, h, gradient.values());
    }
    return relative_difference(optimizer, reference);
}

}  // namespace

TEST(Reference, EveryRuleFollowsItsFormulaInFp32) {
    for (const auto& rule : rule_cases()) {
        for (const bool maximize : {false, true}) {
            auto h = rule.hyperparameters;
            h.maximize = maximize;
            h.learning_rate = rule.rule == Rule::kLion ? 1e-3 : 1e-2;
            EXPECT_LE(difference_after_1000_steps(rule.rule, h), 1e-5)
                << rule.name << (maximize ? " maximize" : "");
            if (rule.rule == Rule::kSGD || rule.rule == Rule::kAdam) continue;
            h.fully_decoupled = true;
            h.weight_decay = 1e-3;
            EXPECT_LE(difference_after_1000_steps(rule.rule, h), 1e-5) << rule.name << " fully decoupled";
        }
    }
}

// A gradient that never changes brings the slow mean to its end, after many steps. The bound of the update
// must not stop it on the way. Adam's bound would.
void follow_a_constant_gradient(Rule rule, double least_update) {
    for (const auto format : {Format::kFloat32, Format::kNative}) {
        Hyperparameters h = default_hyperparameters(rule);
        h.learning_rate = 1e-6;
        h.alpha = 8.0;
        h.beta3 = 0.9999;
        OptimizerOptions options;
        options.storage = {format, 32, true, 0, 0};
        options.threads = 1;
        Tensor weight(DType::kFloat32, {1, 32}), gradient(DType::kFloat32, {1, 32});
        Noise noise(2);
        gradient.fill([&] { return 1.0 + 0.1 * noise.even(); });
        Reference reference(weight.values());
        Optimizer optimizer(rule, h, options);
        optimizer.add_parameter(weight.view());
        optimizer.set_gradient(0, gradient.view());
        for (int t = 0; t < 20000; ++t) {
            optimizer.step();
            reference.step(rule, h, gradient.values());
        }
        EXPECT_GT(std::fabs(reference.w[0]), 20000 * 1e-6 * least_update);
        // fp32: half a unit in the last place of the weight in each step.
        EXPECT_LE(relative_difference(optimizer.master(0), reference.w),
                  format == Format::kFloat32 ? 20000 * 0x1p-24 : 0.03);
    }
}
TEST(Reference, TheBoundOfAdemamixIsBeyondAConstantGradient) {
    follow_a_constant_gradient(Rule::kAdEMAMix, 4.0);  // far more than Adam moves a weight
}
TEST(Reference, TheBoundOfAdanIsBeyondAConstantGradient) { follow_a_constant_gradient(Rule::kAdan, 0.9); }

// A clamp must never change exact updates. These gradients grow, shrink or change their sign, to make the
// last update as large as possible.
TEST(Reference, NoExactUpdateReachesTheBoundOfAdan) {
    for (const double beta3 : {0.99, 0.9, 0.9999}) {
        Hyperparameters h = default_hyperparameters(Rule::kAdan);
        h.beta3 = beta3;
        double largest = 0.0;
        for (const double growth : {0.5, 1.0, 1.01, 1.1, 2.0, 10.0}) {
            for (const bool alternates : {false, true}) {
                Reference reference({0.0F});
                h.learning_rate = 1.0;
                h.epsilon = 0.0;
                double g = 1.0;
                for (int t = 1; t <= 60 && std::fabs(g) < 1e30; ++t, g *= alternates ? -growth : growth) {
                    const double before = reference.w[0];
                    reference.step(Rule::kAdan, h, {static_cast<float>(g)});
                    const double update = std::fabs(reference.w[0] - before),
                                 bound = AdanRule::largest_update(h, t);
                    EXPECT_LE(update, bound * (1.0 + 1e-9)) << beta3 << ' ' << growth << ' ' << t;
                    largest = std::max(largest, update / bound);
                }
            }
        }
        EXPECT_GT(largest, 0.15) << "a bound this far away bounds nothing";
    }
}

/// Steps weights 10,000 times with noisy gradients. Returns how far moment `number` is from the exact mean
/// with decay `beta`, relative to that mean.
double difference_of_mean(Rule rule, Hyperparameters h, int number, double beta) {
    h.learning_rate = 0.0;
    OptimizerOptions options;
    options.storage = {Format::kNative, 32, true, 0, 0};
    options.threads = 1;
    Tensor weight(DType::kFloat32, {8, 128}), gradient(DType::kFloat32, {8, 128});
    Noise noise(5);
    std::vector<double> mean(weight.numel()), exact(weight.numel());
    for (auto& value : mean) value = 0.1 * noise.normal();
    Optimizer optimizer(rule, h, options);
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    for (int t = 0; t < 10000; ++t) {
        std::size_t n = 0;
        gradient.fill([&] { return mean[n++] + noise.normal(); });
        optimizer.step();
        for (n = 0; n < exact.size(); ++n) {
            exact[n] = beta * exact[n] + (1.0 - beta) * static_cast<double>(gradient.get(n));
        }
    }
    return relative_difference(optimizer.moment(0, number), exact);
}

// A mean over 10,000 steps moves in a step by less than the spacing of its type. bfloat16 with dither follows
// it; 8-bit codes, in which AdamW keeps a mean of the same decay, do not.
TEST(Reference, TheSlowMeanStaysNearTheExactOne) {
    const auto slow = default_hyperparameters(Rule::kAdEMAMix);
    const double in_bfloat16 = difference_of_mean(Rule::kAdEMAMix, slow, 2, slow.beta3);
    EXPECT_LE(in_bfloat16, 0.1);
    auto coded = default_hyperparameters(Rule::kAdamW);
    coded.beta1 = slow.beta3;
    const double in_8_bits = difference_of_mean(Rule::kAdamW, coded, 0, coded.beta1);
    EXPECT_GT(in_8_bits, 0.1) << "8 bits would do, too";
    RecordProperty("in_bfloat16", std::to_string(in_bfloat16));
    RecordProperty("in_8_bits", std::to_string(in_8_bits));
}

TEST(Reference, EdgesOfTheHyperparameters) {
    Hyperparameters h;
    h.learning_rate = 0.01;
    for (const auto& [beta1, beta2] : {std::pair{0.0, 0.0}, {0.0, 0.999}, {0.9, 0.5}, {0.99, 0.9}}) {
        h.beta1 = beta1;
        h.beta2 = beta2;
        EXPECT_LE(difference_after_1000_steps(Rule::kAdam, h), 1e-5) << beta1 << " " << beta2;
    }
    h.beta1 = h.beta2 = 1.0;
    EXPECT_LE(difference_after_1000_steps(Rule::kLion, h), 1.0);  // m stays 0: nothing moves, nothing is NaN
    h.momentum = 1.0;
    EXPECT_LE(difference_after_1000_steps(Rule::kSGDW, h), 1e-5);
    h.momentum = 0.9;
    h.dampening = 0.99;
    EXPECT_LE(difference_after_1000_steps(Rule::kSGDW, h), 1e-5);
}

// The stored formats follow the same formulas within what their codes can hold: at most 5 % of the distance
// moved (the measure and the bound that design and docs give for AdamW after 200 steps).
TEST(Reference, NativeAdamWStaysNearExactAdamW) {
    Hyperparameters h;
    h.learning_rate = 1e-3;
    h.weight_decay = 0.01;
    OptimizerOptions options;
    options.storage.min_quantized_numel = 0;
    Noise noise(33);
    Tensor weight(DType::kBFloat16, {64, 128}), gradient(DType::kFloat32, {64, 128});
    weight.fill([&] { return noise.normal() * 0.05; });
    const auto start = weight.values();
    std::vector<double> scale(weight.numel()), drift(weight.numel());
    for (auto& s : scale) s = std::pow(10.0, noise.even() * 0.5 - 2.0);
    for (auto& d : drift) d = noise.normal() * 0.5;
    Reference reference(start);
    Optimizer optimizer(Rule::kAdamW, h, options);
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    for (int t = 0; t < 200; ++t) {
        for (std::size_t n = 0; n < gradient.numel(); ++n) {
            gradient.set(n, static_cast<float>(scale[n] * (drift[n] + noise.normal())));
        }
        optimizer.step();
        reference.step(Rule::kAdamW, h, gradient.values());
    }
    std::vector<double> difference(start.size()), moved(start.size());
    const auto ours = optimizer.master(0);
    for (std::size_t n = 0; n < start.size(); ++n) {
        difference[n] = static_cast<double>(ours[n]) - reference.w[n];
        moved[n] = reference.w[n] - static_cast<double>(start[n]);
    }
    EXPECT_LE(norm(difference) / norm(moved), 0.05);
}

// Small updates are not lost: a 24-bit master at 1.0 drifts as it should under 1,000 updates of 1e-6.
TEST(Reference, SmallUpdatesMoveA24BitMaster) {
    Tensor weight(DType::kBFloat16, {4096}), gradient(DType::kBFloat16, {4096});
    weight.fill([] { return 1.0F; });
    gradient.fill([] { return 1.0F; });
    SGD optimizer({.learning_rate = 1e-6});
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    for (int t = 0; t < 1000; ++t) optimizer.step();
    double mean = 0.0;
    for (const float w : optimizer.master(0)) mean += static_cast<double>(w) / 4096.0;
    // The step is formed in fp32, whose spacing below 1 is 2^-24: that rounds an update of 1e-6 by up to 3 %.
    // The grid of the masters, 2^-16, is 15 updates wide: rounding to it would keep nothing.
    EXPECT_NEAR(mean, 1.0 - 1e-3, 3e-5);
}

// Adam and Lion do not care how large gradients are. Powers of two change no bit;
// others change the roundings only.
TEST(Reference, AdamAndLionDoNotDependOnTheScaleOfGradients) {
    for (const auto rule : {Rule::kAdam, Rule::kAdamW, Rule::kLion}) {
        std::vector<std::vector<float>> results;
        for (const double factor : {1.0, 0x1p-7, 0x1p-17, 0x1p10}) {
            Hyperparameters h;
            h.epsilon = 1e-8 * factor;
            h.weight_decay = rule == Rule::kAdam ? 0.0 : 0.1;
            OptimizerOptions options;
            options.storage.min_quantized_numel = 0;
            Noise noise(17);
            Tensor weight(DType::kBFloat16, {16, 96}), gradient(DType::kFloat32, {16, 96});
            weight.fill([&] { return noise.normal(); });
            Optimizer optimizer(rule, h, options);
            optimizer.add_parameter(weight.view());
            optimizer.set_gradient(0, gradient.view());
            for (int t = 0; t < 50; ++t) {
                gradient.fill([&] { return noise.normal() * factor; });
                optimizer.step();
            }
            results.push_back(optimizer.master(0));
        }
        for (const auto& result : results) EXPECT_EQ(result, results[0]) << name_of(rule);
    }
}

// A gradient of 1e6 beside gradients of 1e-3 makes nothing infinite or NaN.
TEST(Reference, AHugeGradientLeavesItsGroupFinite) {
    OptimizerOptions options;
    options.storage.min_quantized_numel_1d = 0;
    Tensor weight(DType::kBFloat16, {64}), gradient(DType::kFloat32, {64});
    AdamW optimizer({}, options);
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    for (int t = 0; t < 100; ++t) {
        gradient.fill([] { return 1e-3F; });
        if (t == 10) gradient.set(5, 1e6F);
        EXPECT_EQ(optimizer.step().bad_elements, 0U);
        for (const float w : optimizer.master(0)) ASSERT_TRUE(std::isfinite(w));
    }
}

// |u| <= (1-b1)/sqrt(1-b2) sqrt(S) sqrt(bc2)/bc1 with S = sum over k < t of (b1^2/b2)^k (k < min(t, 64) where
// b1^2 >= b2): exact Adam cannot exceed it; state whose second moment was lost can, and must be held there.
TEST(Reference, AdamsUpdateIsClampedToWhatExactAdamCanReach) {
    for (const auto& [beta1, beta2] :
         {std::pair{0.9, 0.999}, {0.9, 0.95}, {0.9, 0.81}, {0.95, 0.9}, {0.9, 0.0}}) {
        Hyperparameters h;
        h.learning_rate = 1.0;
        h.beta1 = beta1;
        h.beta2 = beta2;
        h.epsilon = 0.0;
        constexpr int kSteps = 100;
        Tensor weight(DType::kFloat32, {1}), gradient(DType::kFloat32, {1});
        Optimizer optimizer(Rule::kAdamW, h);
        optimizer.add_parameter(weight.view());
        optimizer.set_gradient(0, gradient.view());
        optimizer.set_step_count(0, kSteps - 1);
        // m = 1 while v = 1e-12: no stream of gradients ends there.
        const float m = 1.0F, v = 1e-12F;
        const auto state = optimizer.state(0);
        std::memcpy(state[0].bytes.data(), &m, sizeof m);
        std::memcpy(state[1].bytes.data(), &v, sizeof v);
        gradient.set(0, 1e-20F);
        optimizer.step();

        const double t = kSteps, bc1 = 1.0 - std::pow(beta1, t), bc2 = 1.0 - std::pow(beta2, t);
        double sum = 0.0;
        const bool converges = beta1 * beta1 < beta2;
        for (int k = 0; k < (converges ? kSteps : 64); ++k) sum += std::pow(beta1 * beta1 / beta2, k);
        const double limit = (1.0 - beta1) / std::sqrt(1.0 - beta2) * std::sqrt(sum) * std::sqrt(bc2) / bc1;
        const double size = std::abs(static_cast<double>(weight.get(0)));
        if (beta2 == 0.0) {
            EXPECT_GT(size, 1e15) << "without beta2 there is no bound";
        } else {
            EXPECT_NEAR(size / limit, 1.0, 1e-5) << beta1 << " " << beta2;
        }
    }
}

// The bound is reached by the stream that Cauchy-Schwarz names, and exact Adam is then not clamped.
TEST(Reference, TheClampDoesNotTouchExactAdam) {
    Hyperparameters h;
    h.learning_rate = 1.0;
    h.beta1 = 0.9;
    h.beta2 = 0.99;
    h.epsilon = 0.0;
    Tensor weight(DType::kFloat32, {1}), gradient(DType::kFloat32, {1});
    Optimizer optimizer(Rule::kAdamW, h);
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    Reference reference(weight.values());
    for (int t = 0; t < 60; ++t) {
        gradient.set(0, static_cast<float>(
                            std::pow(0.99 / 0.9, t)));  // g_t proportional to (b2/b1)^t makes the bound tight
        optimizer.step();
        reference.step(Rule::kAdamW, h, gradient.values());
        ASSERT_NEAR(static_cast<double>(weight.get(0)) / reference.w[0], 1.0, 2e-6) << t;
    }
}

// torch: whether a buffer exists is a flag of the state, not the step count.
TEST(Reference, SgdFillsItsBufferWithTheFirstGradient) {
    for (const auto format : {Format::kFloat32, Format::kNative}) {
        OptimizerOptions options;
        options.storage.format = format;
        Tensor weight(DType::kFloat32, {1}), gradient(DType::kFloat32, {1});
        gradient.set(0, 1.0F);
        SGD optimizer({.learning_rate = 1.0, .momentum = 0.5, .dampening = 0.75}, options);
        optimizer.add_parameter(weight.view());
        optimizer.set_gradient(0, gradient.view());
        EXPECT_FALSE(optimizer.has_momentum(0));
        optimizer.set_step_count(0, 10);
        optimizer.step();
        EXPECT_EQ(weight.get(0), -1.0F);
        EXPECT_TRUE(optimizer.has_momentum(0));
        optimizer.step();
        EXPECT_EQ(weight.get(0), -1.75F);  // 0.5 + 0.25
        // Momentum that is switched off and on again begins anew.
        auto h = optimizer.hyperparameters();
        h.momentum = 0.0;
        optimizer.set_hyperparameters(0, h);
        EXPECT_TRUE(optimizer.moment(0, 0).empty());
        optimizer.step();
        h.momentum = 0.5;
        optimizer.set_hyperparameters(0, h);
        EXPECT_FALSE(optimizer.has_momentum(0));
        optimizer.step();
        EXPECT_EQ(weight.get(0), -3.75F);
    }
    // The paper dampens from the first step on.
    OptimizerOptions paper;
    paper.storage.format = Format::kPaper;
    paper.storage.quantize = false;
    Tensor weight(DType::kFloat32, {1}), gradient(DType::kFloat32, {1});
    gradient.set(0, 1.0F);
    SGD optimizer({.learning_rate = 1.0, .momentum = 0.5, .dampening = 0.75}, paper);
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    optimizer.step();
    EXPECT_EQ(weight.get(0), -0.25F);
}

// Zero is exact: g = m = v = 0 leaves every bit, in every format, for as long as it lasts.
TEST(Reference, ZeroGradientsMoveNothing) {
    for (auto rule : rule_cases()) {
        for (const auto& storage : storage_cases(rule.rule)) {
            rule.hyperparameters.weight_decay = 0.0;
            OptimizerOptions options;
            options.storage = storage.options;
            Noise noise(2);
            Tensor weight(storage.weight, {4, 40}), gradient(DType::kBFloat16, {4, 40});
            weight.fill([&] { return noise.normal(); });
            const auto before = weight.bytes();
            Optimizer optimizer(rule.rule, rule.hyperparameters, options);
            optimizer.add_parameter(weight.view());
            optimizer.set_gradient(0, gradient.view());
            for (int t = 0; t < 20; ++t) optimizer.step();
            EXPECT_TRUE(weight.bytes() == before) << rule.name << " " << storage.name;
        }
    }
}

}  // namespace flashoptim
