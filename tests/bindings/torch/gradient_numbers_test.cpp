// Loss scale, found_inf and clip coefficient as tensors: what they do to a step, wherever they are read.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "support.h"

namespace flashoptim::libtorch {
namespace {

torch::Tensor number(float value) { return torch::full({1}, value, torch::kFloat32); }

}  // namespace

/// A scale or a clip that is applied with other roundings, twice or not at all is another training.
TEST(GradientNumbers, ScaleAndClipAreTheFactorOfAStep) {
    for_each_kind([](Rule rule, Format format) {
        const auto of_a = parameters(5, torch::kBFloat16), of_b = parameters(5, torch::kBFloat16);
        const auto a = make_optimizer(rule, format, of_a), b = make_optimizer(rule, format, of_b);
        const auto scale = number(8.0F);
        b->set_grad_scale(scale);
        for (int step = 0; step < 4; ++step) {
            set_gradients(of_a, step);
            set_gradients(of_b, step);
            float factor = 1.0F / 8.0F;
            if (step % 2 == 0) {  // of this step only
                const double max_norm = step == 0 ? 0.01 : 1e6;
                a->set_gradient_factor(factor);
                const double norm = a->grad_norm();
                const auto given = b->clip_grad_norm(max_norm);
                EXPECT_EQ(given.scalar_type(), torch::kFloat64);
                EXPECT_EQ(given.item<double>(), norm);
                EXPECT_EQ(b->grad_norm(), norm) << "the clip coefficient is no part of the norm";
                factor *= static_cast<float>(std::min(1.0, max_norm / (norm + 1e-6)));
            }
            a->set_gradient_factor(factor);
            a->step();
            b->step();
            EXPECT_TRUE(same_everything(*a, of_a, *b, of_b)) << "step " << step;
        }
        b->set_grad_scale({});
        a->set_gradient_factor(1.0);
        EXPECT_EQ(a->grad_norm(), b->grad_norm());
    });
}

/// Another attempt with the same gradients is clipped; those after zero_grad() or a step
/// that they stopped are others.
TEST(GradientNumbers, AClipIsForTheGradientsWhoseNormItWas) {
    for (const bool is_stopped : {false, true}) {
        const auto of_a = parameters(5, torch::kBFloat16), of_b = parameters(5, torch::kBFloat16);
        const auto options = AdamWOptions(1e-2).nonfinite(NonFinite::kError);
        AdamW a(of_a, options), b(of_b, options);
        set_gradients(of_b, 0);
        b.clip_grad_norm(0.01);
        if (is_stopped) {
            of_b[0].mutable_grad()[1][2] = NAN;
            EXPECT_THROW(b.step(), NonFiniteError);
        } else {
            b.zero_grad();
        }
        set_gradients(of_a, 1);
        set_gradients(of_b, 1);
        a.step();
        b.step();
        for (std::size_t n = 0; n < of_a.size(); ++n) EXPECT_TRUE(torch::equal(of_a[n], of_b[n]));
    }
    const auto of_a = parameters(5, torch::kBFloat16), of_b = parameters(5, torch::kBFloat16);
    AdamW a(of_a, 1e-2), b(of_b, 1e-2);
    set_gradients(of_a, 0);
    set_gradients(of_b, 0);
    a.clip_grad_norm(0.01);
    b.clip_grad_norm(0.01);
    const auto whole = of_b[0].grad();
    of_b[0].mutable_grad() = whole.to_sparse();
    EXPECT_THROW(b.step(), InvalidArgument);
    of_b[0].mutable_grad() = whole;
    a.step();
    b.step();
    EXPECT_TRUE(same_everything(a, of_a, b, of_b));
}

/// A step that is kept back and counted all the same has other bias corrections, and fills
/// SGD's momentum with nothing.
TEST(GradientNumbers, StepsThatFoundInfKeepsBackAreNotCounted) {
    for_each_kind([](Rule rule, Format format) {
        const auto of_a = parameters(6, torch::kBFloat16), of_b = parameters(6, torch::kBFloat16);
        const auto a = make_optimizer(rule, format, of_a), b = make_optimizer(rule, format, of_b);
        const auto found_inf = number(0.0F);
        b->set_found_inf(found_inf);
        for (int step = 0; step < 9; ++step) {
            const bool is_kept_back = step == 0 || step == 2 || step == 5;
            if (step == 4) {
                EXPECT_EQ(b->step_count(of_b[1]), 2);
            }
            if (step == 7) b->set_found_inf({});
            found_inf.fill_(is_kept_back ? 1.0F : 0.0F);
            set_gradients(of_a, step);
            set_gradients(of_b, step);
            if (!is_kept_back) a->step();
            b->step();
        }
        EXPECT_TRUE(same_everything(*a, of_a, *b, of_b));
    });
}

/// Whoever saves must get the steps that were made, also those that only the device has counted.
TEST(GradientNumbers, StepsUnderFoundInfAreSavedAndLoaded) {
    const auto of_a = parameters(7, torch::kBFloat16), of_b = parameters(7, torch::kBFloat16);
    AdamW a(of_a, 1e-2), b(of_b, 1e-2);
    b.set_found_inf(number(0.0F));
    for (int step = 0; step < 3; ++step) {
        set_gradients(of_a, step);
        set_gradients(of_b, step);
        a.step();
        b.step();
    }
    const auto bytes = saved(b);
    EXPECT_TRUE(saved(a) == bytes);
    b.step();
    std::istringstream from(bytes);
    torch::serialize::InputArchive archive;
    archive.load_from(from);
    b.load(archive);
    EXPECT_EQ(b.step_count(of_b[0]), 3);
    b.set_step_count(of_b[0], 9);
    b.step();
    EXPECT_EQ(b.step_count(of_b[0]), 10);
    EXPECT_EQ(b.step_count(of_b[1]), 4);
}

/// An infinity that the loss scaler has found is its business, and no bad gradient of the policy's.
TEST(GradientNumbers, FoundInfGoesBeforeThePolicies) {
    for (const auto policy : {NonFinite::kSkipElement, NonFinite::kSkipStep, NonFinite::kError}) {
        const auto all = parameters(8, torch::kBFloat16);
        AdamW optimizer(all, AdamWOptions(1e-2).nonfinite(policy));
        set_gradients(all, 0);
        all[0].mutable_grad()[1][2] = NAN;
        optimizer.set_found_inf(number(1.0F));
        const auto before = all[0].detach().clone();
        optimizer.step();
        EXPECT_TRUE(torch::equal(all[0], before));
        EXPECT_EQ(optimizer.step_count(all[0]), 0);
        EXPECT_EQ(optimizer.bad_elements(), 0);
    }
}

TEST(GradientNumbers, ReleasedGradientsAreScaledAndKeptBackToo) {
    const auto weight = parameter(torch::ones({40, 70}), torch::kBFloat16);
    AdamW optimizer(Tensors{weight}, 1e-2);
    const GradientRelease release(optimizer);
    const auto found_inf = number(1.0F);
    optimizer.set_found_inf(found_inf);
    weight.sum().backward();
    EXPECT_EQ(optimizer.step_count(weight), 0);
    found_inf.zero_();
    weight.sum().backward();
    EXPECT_EQ(optimizer.step_count(weight), 1);
    const auto message = message_of<InvalidArgument>([&] { optimizer.clip_grad_norm(1.0); });
    EXPECT_TRUE(contains(message, "GradientRelease")) << message;
}

TEST(GradientNumbers, WhatIsNoNumberIsNamed) {
    const auto all = parameters(9, torch::kBFloat16);
    AdamW optimizer(all, 1e-2);
    auto message = message_of<InvalidArgument>([&] { optimizer.set_grad_scale(torch::ones({2})); });
    EXPECT_TRUE(contains(message, "the grad scale is float32 [2]")) << message;
    message = message_of<InvalidArgument>([&] { optimizer.set_found_inf(torch::ones({1}, torch::kInt64)); });
    EXPECT_TRUE(contains(message, "found_inf is int64 [1]")) << message;
    for (const double norm : {-1.0, std::nan("")}) {
        message = message_of<InvalidArgument>([&] { optimizer.clip_grad_norm(norm); });
        EXPECT_TRUE(contains(message, "maximal norm")) << message;
    }
}

/// A loop that leaves out a step and clears its gradients by the model's zero_grad(), which
/// is not told to an optimizer.
TEST(GradientNumbers, TheClipCoefficientGoesWithItsGradients) {
    for_each_kind([](Rule rule, Format format) {
        const auto of_a = parameters(5, torch::kBFloat16), of_b = parameters(5, torch::kBFloat16);
        const auto a = make_optimizer(rule, format, of_a), b = make_optimizer(rule, format, of_b);
        set_gradients(of_a, 0);
        a->clip_grad_norm(1e-3);
        for (const auto& p : of_a) p.mutable_grad().reset();
        for (const auto* given : {&of_a, &of_b}) set_gradients(*given, 1);
        a->step();
        b->step();
        EXPECT_TRUE(same_everything(*a, of_a, *b, of_b));
    });
}

}  // namespace flashoptim::libtorch
