// Gradient release: the same bits as an ordinary step, in less memory.
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <limits>
#include <optional>
#include <thread>

#include "support.h"

namespace flashoptim::libtorch {
namespace {

/// A small network whose second weight is used twice and whose last parameter is not used at all.
struct Network {
    explicit Network(torch::Dtype dtype) {
        torch::manual_seed(3);
        for (const auto& values :
             {torch::randn({48, 32}), torch::randn({48, 48}), torch::randn({48}), torch::randn({7})}) {
            all.push_back(parameter(values * 0.2, dtype));
        }
    }
    [[nodiscard]] torch::Tensor loss(int step) const {
        torch::manual_seed(static_cast<std::uint64_t>(step));
        const auto input = torch::randn({16, 32}).to(all[0].scalar_type());
        auto hidden = torch::tanh(torch::linear(input, all[0], all[2]));
        hidden = torch::tanh(torch::linear(hidden, all[1]));
        return torch::linear(hidden, all[1]).to(torch::kFloat32).square().mean();
    }
    Tensors all;
};

/// Whoever switches gradient release on must get the training that he had before.
TEST(GradientRelease, GivesTheBitsOfAnFastKernel) {
    for_each_kind([](Rule rule, Format format) {
        const Network plain(torch::kBFloat16), released(torch::kBFloat16);
        const auto a = make_optimizer(rule, format, plain.all);
        const auto b = make_optimizer(rule, format, released.all);
        const GradientRelease release(*b);
        for (int step = 0; step < 5; ++step) {
            a->zero_grad();
            plain.loss(step).backward();
            a->step();
            released.loss(step).backward();
            for (const auto& p : released.all) EXPECT_FALSE(p.grad().defined()) << "a gradient was kept";
        }
        EXPECT_EQ(b->step_count(released.all[1]), 5)
            << "a tied weight must be stepped once in a backward pass";
        EXPECT_EQ(b->step_count(released.all[3]), 0);
        EXPECT_TRUE(same_everything(*a, plain.all, *b, released.all));
    });
}

/// Torch's CPU allocator with a count of the bytes that are alive.
class CountingAllocator final : public c10::Allocator {
public:
    static CountingAllocator& instance() {
        static CountingAllocator allocator;  // tensors keep pointers to their allocator
        return allocator;
    }
    c10::DataPtr allocate(std::size_t bytes) override {
        auto block = std::make_unique<Block>(Block{base_->allocate(bytes), bytes});
        alive_ += bytes;
        peak_ = std::max(peak_.load(), alive_.load());
        void* data = block->memory.get();
        return {data, block.release(), &free, c10::Device(c10::DeviceType::CPU)};
    }
    void copy_data(void* to, const void* from, std::size_t bytes) const override {
        default_copy_data(to, from, bytes);
    }
    /// Bytes that `work` had alive at once beyond those alive before it.
    template <class Work>
    std::size_t peak_of(const Work& work) {
        c10::SetCPUAllocator(this);
        const auto before = alive_.load();
        peak_ = before;
        work();
        c10::SetCPUAllocator(base_);
        return peak_ - before;
    }

private:
    struct Block {
        c10::DataPtr memory;
        std::size_t bytes;
    };
    static void free(void* context) {
        const std::unique_ptr<Block> block(static_cast<Block*>(context));
        instance().alive_ -= block->bytes;
    }
    c10::Allocator* base_ = c10::GetCPUAllocator();
    std::atomic<std::size_t> alive_{0}, peak_{0};
};

/// The point of it all: the gradients of the model never exist together.
TEST(GradientRelease, HoldsFewGradientsAtOnce) {
    constexpr std::size_t kLayers = 16, kWidth = 256, kWeightBytes = kWidth * kWidth * sizeof(float);
    Tensors weights;
    for (std::size_t n = 0; n < kLayers; ++n) {
        weights.push_back(parameter(torch::eye(kWidth)));
    }
    AdamW optimizer(weights, AdamWOptions(1e-3));
    const auto backward = [&] {
        auto x = torch::ones({2, kWidth});
        for (const auto& w : weights) x = torch::matmul(x, w);
        x.sum().backward();
    };
    backward();
    optimizer.step();  // makes the states
    optimizer.zero_grad();
    EXPECT_GE(CountingAllocator::instance().peak_of(backward), kLayers * kWeightBytes);
    optimizer.zero_grad();
    const GradientRelease release(optimizer);
    EXPECT_LE(CountingAllocator::instance().peak_of(backward), 4 * kWeightBytes);
}

/// A training loop written for ordinary steps must not step twice, and its author must hear about it, once.
TEST(GradientRelease, MakesStepAndZeroGradNothingAndSaysSoOnce) {
    const Network network(torch::kFloat32);
    AdamW optimizer(network.all, 1e-2);
    {
        const GradientRelease release(optimizer);
        network.loss(0).backward();
        const auto weights = network.all[0].detach().clone();
        network.all[0].mutable_grad() = torch::ones_like(network.all[0]);
        ::testing::internal::CaptureStderr();
        optimizer.step();
        optimizer.step();
        optimizer.zero_grad();
        const auto said = ::testing::internal::GetCapturedStderr();
        const auto first = said.find("GradientRelease");
        EXPECT_NE(first, std::string::npos) << said;
        EXPECT_EQ(said.find("GradientRelease", first + 1), std::string::npos) << said;
        EXPECT_TRUE(same_bits(weights, network.all[0]));
        EXPECT_TRUE(network.all[0].grad().defined());
    }
    const auto weights = network.all[0].detach().clone();
    optimizer.step();
    EXPECT_TRUE(has_moved(weights, network.all[0])) << "step() was not restored";
    optimizer.zero_grad();
    EXPECT_FALSE(network.all[0].grad().defined()) << "zero_grad() was not restored";
    network.loss(1).backward();
    EXPECT_TRUE(network.all[0].grad().defined()) << "the hooks were not removed";
}

/// A parameter that was put into the place of another one has no hook: without step() it would never train.
TEST(GradientRelease, StepStepsParametersThatCameLater) {
    const auto stays = parameter(torch::ones({40})), leaves = parameter(torch::ones({40})),
               comes = parameter(torch::ones({40}));
    AdamW optimizer(Tensors{stays, leaves}, 1e-2);
    const GradientRelease release(optimizer);
    optimizer.param_groups()[0].params()[1] = comes;
    for (std::int64_t step = 1; step <= 3; ++step) {
        (stays * comes).sum().backward();
        EXPECT_FALSE(stays.grad().defined());
        const auto before = comes.detach().clone();
        optimizer.step();
        EXPECT_TRUE(has_moved(before, comes));
        EXPECT_EQ(optimizer.step_count(comes), step);
        EXPECT_EQ(optimizer.step_count(stays), step) << "stepped by its hook and by step()";
        optimizer.zero_grad();
        EXPECT_FALSE(comes.grad().defined());
    }
}

TEST(GradientRelease, ReturnsTheLossOfAClosure) {
    const Network network(torch::kFloat32);
    AdamW optimizer(network.all, 1e-2);
    const GradientRelease release(optimizer);
    const auto loss = optimizer.step([&] {
        auto value = network.loss(0);
        value.backward();
        return value;
    });
    EXPECT_TRUE(loss.defined());
    EXPECT_EQ(optimizer.step_count(network.all[0]), 1);
}

TEST(GradientRelease, FollowsASchedulerAndTheGradientFactor) {
    const Network plain(torch::kFloat32), released(torch::kFloat32);
    AdamW a(plain.all, 1e-2), b(released.all, 1e-2);
    torch::optim::StepLR schedule_a(a, 1, 0.5), schedule_b(b, 1, 0.5);
    a.set_gradient_factor(0.25);
    b.set_gradient_factor(0.25);
    const GradientRelease release(b);
    for (int step = 0; step < 3; ++step) {
        a.zero_grad();
        plain.loss(step).backward();
        a.step();
        released.loss(step).backward();
        schedule_a.step();
        schedule_b.step();
    }
    EXPECT_TRUE(same_everything(a, plain.all, b, released.all));
}

TEST(GradientRelease, MovesWithItsHandleAndItsOptimizer) {
    const Network network(torch::kFloat32);
    std::optional<AdamW> optimizer(std::in_place, network.all, AdamWOptions(1e-2));
    std::optional<GradientRelease> release(std::in_place, *optimizer);
    GradientRelease moved(std::move(*release));
    release.reset();
    network.loss(0).backward();
    EXPECT_EQ(optimizer->step_count(network.all[0]), 1) << "the moved-from handle removed the hooks";
    AdamW other(std::move(*optimizer));
    optimizer.reset();
    network.loss(1).backward();
    EXPECT_EQ(other.step_count(network.all[0]), 2) << "the hooks lost the moved optimizer";
    moved.remove();
    network.loss(2).backward();
    EXPECT_EQ(other.step_count(network.all[0]), 2);
}

TEST(GradientRelease, OutlivesItsOptimizer) {
    const Network network(torch::kFloat32);
    auto optimizer = std::make_unique<AdamW>(network.all, AdamWOptions(1e-2));
    const GradientRelease release(*optimizer);
    optimizer.reset();
    network.loss(0).backward();
    EXPECT_TRUE(network.all[0].grad().defined()) << "without an optimizer backward() is torch's own";
}

TEST(GradientRelease, ServesBackwardPassesInSeveralThreads) {
    constexpr int kThreads = 4, kSteps = 20;
    std::vector<Network> networks;
    Tensors all;
    for (int n = 0; n < kThreads; ++n) {
        networks.emplace_back(torch::kFloat32);
        all.insert(all.end(), networks.back().all.begin(), networks.back().all.end());
    }
    AdamW optimizer(all, 1e-2);
    const GradientRelease release(optimizer);
    std::vector<std::thread> threads;
    for (const auto& network : networks) {
        threads.emplace_back([&network] {
            for (int step = 0; step < kSteps; ++step) {
                torch::linear(torch::ones({4, 32}), network.all[0]).square().mean().backward();
            }
        });
    }
    for (auto& thread : threads) thread.join();
    for (const auto& network : networks) {
        EXPECT_EQ(optimizer.step_count(network.all[0]), kSteps);
        EXPECT_TRUE(same_bits(network.all[0], networks[0].all[0]));
    }
}

/// An error inside a hook must not be lost, and must not leave a gradient to which the next pass adds.
TEST(GradientRelease, ErrorsComeOutOfBackward) {
    const auto p = parameter(torch::ones({4}));
    AdamW optimizer(Tensors{p}, AdamWOptions(1e-2).nonfinite(NonFinite::kError));
    const GradientRelease release(optimizer);
    const auto bad = torch::full({4}, std::numeric_limits<float>::infinity());
    const auto message = message_of<NonFiniteError>([&] { (p * bad).sum().backward(); });
    EXPECT_TRUE(contains(message, "group 0, parameter 0")) << message;
    EXPECT_TRUE(same_bits(p, torch::ones({4})));
    EXPECT_FALSE(p.grad().defined());
    p.sum().backward();
    EXPECT_EQ(optimizer.step_count(p), 1);
}

/// What somebody else throws in the middle of a backward pass: what lies before it in the pass has been
/// stepped, the rest has not, no gradient is left over, and the next pass steps all.
TEST(GradientRelease, GoesOnAfterAnErrorOfAnotherNode) {
    struct Failing : torch::autograd::Function<Failing> {
        static torch::Tensor forward(torch::autograd::AutogradContext*, const torch::Tensor& x) {
            return x.clone();
        }
        static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                       const torch::autograd::variable_list&) {
            throw std::runtime_error("somebody else's error");
        }
    };
    const Tensors weights{parameter(torch::eye(8)), parameter(torch::eye(8)), parameter(torch::eye(8))};
    AdamW optimizer(weights, 1e-2);
    const GradientRelease release(optimizer);
    const auto backward = [&](bool fails) {
        auto x = torch::matmul(torch::ones({2, 8}), weights[0]);
        x = torch::matmul(x, weights[1]);
        if (fails) x = Failing::apply(x);
        torch::matmul(x, weights[2]).sum().backward();
    };
    const auto counts = [&] {
        std::vector<std::int64_t> steps;
        for (const auto& w : weights) steps.push_back(optimizer.step_count(w));
        return steps;
    };
    backward(false);
    EXPECT_THROW(backward(true), std::runtime_error);
    for (const auto& w : weights) EXPECT_FALSE(w.grad().defined()) << "a gradient was kept";
    EXPECT_EQ(counts(), (std::vector<std::int64_t>{1, 1, 2}));
    backward(false);
    EXPECT_EQ(counts(), (std::vector<std::int64_t>{2, 2, 3}));
}

/// A gradient that is there already would be stepped with, or added to, without anybody having asked for it.
TEST(GradientRelease, RefusesGradientsOfBefore) {
    const auto p = parameter(torch::ones({4}));
    AdamW optimizer(Tensors{p}, AdamWOptions(1e-2));
    const auto refused = [&] {
        return contains(message_of<InvalidArgument>([&] { const GradientRelease release(optimizer); }),
                        "zero_grad()");
    };
    p.mutable_grad() = torch::ones({4});
    EXPECT_TRUE(refused());
    optimizer.zero_grad();
    optimizer.set_gradient(p, torch::ones({4}));
    EXPECT_TRUE(refused());
    optimizer.zero_grad();
    GradientRelease release(optimizer);
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.set_gradient(p, torch::ones({4})); }),
                         "gradient release"));
    optimizer.set_gradient(p, {});
    p.sum().backward();
    EXPECT_EQ(optimizer.step_count(p), 1);
    release.remove();
    optimizer.set_gradient(p, torch::ones({4}));
    optimizer.step();
    EXPECT_EQ(optimizer.step_count(p), 2);
}

/// Weights tied under the hooks would be stepped twice.
TEST(GradientRelease, RefusesWeightsThatWereTied) {
    const auto a = parameter(torch::ones({4})), b = parameter(torch::zeros({4}));
    AdamW optimizer(Tensors{a, b}, AdamWOptions(1e-2));
    const GradientRelease release(optimizer);
    (a + b).sum().backward();
    auto tied = b;
    const auto own = b.data();
    tied.set_data(a.data());
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { b.sum().backward(); }), "shares memory"));
    tied.set_data(own);
    EXPECT_EQ(optimizer.step_count(a), 1);
    EXPECT_EQ(optimizer.step_count(b), 1);
}

/// Under release a step is one parameter's.
TEST(GradientRelease, ReportsTheLastParameter) {
    const auto bad = parameter(torch::ones({4})), good = parameter(torch::ones({4}));
    AdamW optimizer(Tensors{bad, good}, AdamWOptions(1e-2));
    const GradientRelease release(optimizer);
    (bad * std::numeric_limits<float>::infinity()).sum().backward();
    EXPECT_EQ(optimizer.last_step().bad_elements, reported_at_once(4));
    good.sum().backward();
    EXPECT_EQ(optimizer.last_step().bad_elements, 0U);
    EXPECT_EQ(optimizer.bad_elements(), 4);
}

TEST(GradientRelease, RefusesWhatCannotBe) {
    const Network network(torch::kFloat32);
    AdamW optimizer(network.all, 1e-2);
    const GradientRelease release(optimizer);
    EXPECT_TRUE(
        contains(message_of<InvalidArgument>([&] { GradientRelease second(optimizer); }), "remove()"));
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] {
                             optimizer.add_param_group(torch::optim::OptimizerParamGroup({torch::ones({2})}));
                         }),
                         "gradient release"));
    AdamW other(network.all, 1e-2);
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { GradientRelease second(other); }), "hook"));
}

}  // namespace
}  // namespace flashoptim::libtorch
