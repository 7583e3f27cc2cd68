// The uncompressed format against LibTorch's own optimizers, and Lion against float64: who loses these tests
// cannot replace torch::optim by ours and expect the same training.
#include "support.h"

namespace flashoptim::libtorch {
namespace {

constexpr int kSteps = 1000;

/// Distance of two runs after the same 1,000 random gradients, relative to the weights. One step rounds each
/// weight to half an ulp (6e-8) a few times; as a random walk over 1,000 steps that is some 1e-6. A wrong
/// constant is 1e-3 and more.
constexpr double kBound = 1e-5;

/// The factor of decoupled weight decay is rounded to fp32 once, here as in LibTorch: against exact
/// arithmetic that is up to half an ulp below 1, the same in each step.
constexpr double kBoundWithDecay = kBound + kSteps * 0x1p-25;

double distance(const torch::Tensor& ours, const torch::Tensor& theirs) {
    const auto reference = theirs.detach().to(torch::kFloat64);
    return ((ours.detach().to(torch::kFloat64) - reference).norm() / reference.norm()).item<double>();
}

template <class Ours, class Theirs, class OurOptions, class TheirOptions>
double distance_of_runs(OurOptions our_options, const TheirOptions& their_options) {
    torch::manual_seed(1);
    const auto start = torch::randn({64, 64});
    const auto ours = parameter(start);
    const auto theirs = parameter(start);
    Ours our_optimizer(Tensors{ours}, our_options.format(Format::kFloat32));
    Theirs their_optimizer(Tensors{theirs}, their_options);
    for (int step = 0; step < kSteps; ++step) {
        const auto gradient = torch::randn({64, 64});
        ours.mutable_grad() = gradient;
        theirs.mutable_grad() = gradient.clone();
        our_optimizer.step();
        their_optimizer.step();
    }
    EXPECT_GT(distance(ours, start), 1e-3) << "nothing was trained";
    return distance(ours, theirs);
}

TEST(Reference, SgdIsTorchs) {
    const auto run = [](double momentum, double dampening, bool nesterov, double decay) {
        return distance_of_runs<SGD, torch::optim::SGD>(
            SGDOptions(1e-2).momentum(momentum).dampening(dampening).nesterov(nesterov).weight_decay(decay),
            torch::optim::SGDOptions(1e-2)
                .momentum(momentum)
                .dampening(dampening)
                .nesterov(nesterov)
                .weight_decay(decay));
    };
    EXPECT_LE(run(0.0, 0.0, false, 0.0), kBound);
    EXPECT_LE(run(0.0, 0.0, false, 1e-2), kBound);
    EXPECT_LE(run(0.9, 0.0, false, 0.0), kBound);
    EXPECT_LE(run(0.9, 0.5, false, 1e-2), kBound);
    EXPECT_LE(run(0.9, 0.0, true, 1e-2), kBound);
}

TEST(Reference, AdamIsTorchs) {
    const auto run = [](double beta2, double decay) {
        return distance_of_runs<Adam, torch::optim::Adam>(
            AdamOptions(1e-3).betas({0.9, beta2}).weight_decay(decay),
            torch::optim::AdamOptions(1e-3).betas({0.9, beta2}).weight_decay(decay));
    };
    EXPECT_LE(run(0.999, 0.0), kBound);
    EXPECT_LE(run(0.95, 1e-2), kBound);
}

TEST(Reference, AdamWIsTorchs) {
    const auto run = [](double beta1, double decay) {
        return distance_of_runs<AdamW, torch::optim::AdamW>(
            AdamWOptions(1e-3).betas({beta1, 0.999}).weight_decay(decay),
            torch::optim::AdamWOptions(1e-3).betas({beta1, 0.999}).weight_decay(decay));
    };
    EXPECT_LE(run(0.9, 0.0), kBound);
    EXPECT_LE(run(0.8, 0.1), kBound);
}

/// SGDW is SGD without decay after weights that were scaled by 1 - lr * weight_decay.
TEST(Reference, SgdwDecaysApartFromTheGradient) {
    torch::manual_seed(1);
    const auto start = torch::randn({64, 64});
    const auto ours = parameter(start);
    auto reference = start.to(torch::kFloat64);
    auto buffer = torch::zeros_like(reference);
    SGDW optimizer(Tensors{ours}, SGDWOptions(1e-2).momentum(0.9).weight_decay(0.1).format(Format::kFloat32));
    for (int step = 0; step < kSteps; ++step) {
        const auto gradient = torch::randn({64, 64});
        ours.mutable_grad() = gradient;
        optimizer.step();
        buffer = 0.9 * buffer + gradient.to(torch::kFloat64);
        reference = reference * (1.0 - 1e-2 * 0.1) - 1e-2 * buffer;
    }
    EXPECT_LE(distance(ours, reference), kBoundWithDecay);
}

/// Where c is nearly 0 its sign may differ in fp32 and move a weight by 2 lr; the bound leaves room for three
/// such elements (each 2e-4 / 64 = 3e-6), of which 0.4 are expected in 4 million.
TEST(Reference, LionIsItsFormulaInFloat64) {
    const auto distance_of_run = [](double decay) {
        constexpr double kRate = 1e-4, kBeta1 = 0.9, kBeta2 = 0.99;
        torch::manual_seed(1);
        const auto start = torch::randn({64, 64});
        const auto ours = parameter(start);
        auto reference = start.to(torch::kFloat64);
        auto moment = torch::zeros_like(reference);
        Lion optimizer(
            Tensors{ours},
            LionOptions(kRate).betas({kBeta1, kBeta2}).weight_decay(decay).format(Format::kFloat32));
        for (int step = 0; step < kSteps; ++step) {
            const auto gradient = torch::randn({64, 64});
            ours.mutable_grad() = gradient;
            optimizer.step();
            const auto g = gradient.to(torch::kFloat64);
            reference =
                reference * (1.0 - kRate * decay) - kRate * (kBeta1 * moment + (1.0 - kBeta1) * g).sign();
            moment = kBeta2 * moment + (1.0 - kBeta2) * g;
        }
        return distance(ours, reference);
    };
    EXPECT_LE(distance_of_run(0.0), kBound);
    EXPECT_LE(distance_of_run(0.1), kBoundWithDecay);
}

/// With decouple_lr the decay of a step is weight_decay * lr / initial_lr: a halved rate halves it, and it
/// does not depend on the first rate itself.
TEST(Reference, DecayCanBeDecoupledFromTheLearningRate) {
    const auto decayed = [](double first_rate) {
        const auto p = parameter(torch::ones({8}));
        AdamW optimizer(
            Tensors{p},
            AdamWOptions(first_rate).weight_decay(0.5).decouple_lr(true).format(Format::kFloat32));
        for (const double rate : {first_rate, first_rate / 2}) {
            optimizer.param_groups()[0].options().set_lr(rate);
            p.mutable_grad() = torch::zeros({8});
            optimizer.step();
        }
        return p[0].item<double>();
    };
    EXPECT_DOUBLE_EQ(decayed(1e-3), 0.5 * 0.75);
    EXPECT_DOUBLE_EQ(decayed(1e-1), 0.5 * 0.75);
}

}  // namespace
}  // namespace flashoptim::libtorch
