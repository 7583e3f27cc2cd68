// What the optimizers refuse: each message names the parameter and a remedy, and nothing changed.
#include <cstring>
#include <limits>
#include <sstream>
#include <vector>

#include "support.h"

namespace flashoptim::libtorch {
namespace {

std::string refused(const Tensors& tensors, const AdamWOptions& options = {}) {
    return message_of<InvalidArgument>([&] { AdamW optimizer(tensors, options); });
}

/// The second parameter is the bad one; the first is good.
std::string refused_second(const torch::Tensor& bad) {
    const auto message = refused({torch::ones({2}), bad});
    EXPECT_TRUE(contains(message, "group 0, parameter 1")) << message;
    return message;
}

TEST(Parameters, OfOtherDtypesAreRefused) {
    for (const auto dtype :
         {torch::kFloat64, torch::kInt32, torch::kInt8, torch::kComplexFloat, torch::kBool}) {
        const auto message = refused_second(torch::ones({2, 3}).to(dtype));
        EXPECT_TRUE(contains(message, "[2, 3]") && contains(message, "bfloat16")) << message;
    }
    EXPECT_TRUE(contains(refused_second(torch::ones({2}, torch::kFloat64)), "float64"));
}
TEST(Parameters, OnOtherDevicesAreRefused) {
    EXPECT_TRUE(contains(refused_second(torch::empty({2}, torch::device(torch::kMeta))), "meta"));
}
TEST(Parameters, ThatAreNotDenseAreRefused) {
    EXPECT_TRUE(contains(refused_second(torch::ones({2, 1}).expand({2, 3})), "[2, 3]"));
    EXPECT_TRUE(contains(refused_second(torch::ones({10}).as_strided({4, 4}, {2, 1})), "[4, 4]"));
    EXPECT_TRUE(contains(refused_second(torch::ones({4, 6}).slice(1, 0, 3)), "[4, 3]"));
    EXPECT_TRUE(contains(refused_second(torch::ones({2, 2}).to_sparse()), "dense"));
}
TEST(Parameters, ThatAreUndefinedOrNotLeavesAreRefused) {
    EXPECT_TRUE(contains(refused_second(torch::Tensor()), "undefined"));
    EXPECT_TRUE(contains(refused_second(torch::ones({2}).requires_grad_() * 2), "leaf"));
}
TEST(Parameters, ThatShareMemoryAreRefused) {
    const auto memory = torch::ones({10});
    const auto message = refused({memory.slice(0, 0, 6), torch::ones({3}), memory.slice(0, 5, 10)});
    EXPECT_TRUE(contains(message, "parameter 2") && contains(message, "parameter 0")) << message;
    const AdamW neighbours(Tensors{memory.slice(0, 0, 5), memory.slice(0, 5, 10)});
    EXPECT_EQ(neighbours.param_groups()[0].params().size(), 2U) << "parts that do not overlap are fine";
}
/// Tied after the optimizer was made they would be stepped twice.
TEST(Parameters, ThatComeToShareMemoryAreRefused) {
    const auto a = parameter(torch::ones({4})), b = parameter(torch::zeros({4}));
    AdamW optimizer(Tensors{a, b});
    a.mutable_grad() = b.mutable_grad() = torch::ones({4});
    optimizer.step();
    auto tied = b;
    const auto own = b.data();
    tied.set_data(a.data());
    const auto weights = a.detach().clone();
    for (int attempt = 0; attempt < 2; ++attempt) {
        EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.step(); }), "shares memory"));
    }
    EXPECT_TRUE(same_bits(a, weights));
    tied.set_data(own);
    optimizer.step();
    EXPECT_EQ(optimizer.step_count(b), 2);
    optimizer.param_groups()[0].params().push_back(a.data().slice(0, 0, 2));
    for (int attempt = 0; attempt < 2; ++attempt) {
        EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.step(); }), "shares memory"))
            << "a refused tensor was taken by the next step";
    }
}
TEST(Parameters, GivenTwiceAreRefused) {
    const auto p = torch::ones({2});
    EXPECT_TRUE(contains(refused({p, p}), "parameter 1 is the same tensor as group 0, parameter 0"));
    AdamW optimizer(Tensors{p});
    const auto message = message_of<InvalidArgument>(
        [&] { optimizer.add_param_group(torch::optim::OptimizerParamGroup({torch::ones({3}), p})); });
    EXPECT_TRUE(contains(message, "group 1, parameter 1")) << message;
    EXPECT_EQ(optimizer.param_groups().size(), 1U) << "a refused group was kept";
    p.mutable_grad() = torch::ones({2});
    optimizer.step();
    EXPECT_EQ(optimizer.step_count(p), 1);
}

TEST(Options, OutOfRangeAreRefused) {
    const Tensors p{torch::ones({2})};
    EXPECT_TRUE(contains(refused(p, AdamWOptions(-1.0)), "group 0"));
    EXPECT_TRUE(contains(refused(p, AdamWOptions(std::nan(""))), "group 0"));
    EXPECT_TRUE(contains(refused(p, AdamWOptions().betas({1.0, 0.9})), "group 0"));
    EXPECT_TRUE(contains(refused(p, AdamWOptions().eps(-1.0)), "group 0"));
    EXPECT_TRUE(contains(refused(p, AdamWOptions().weight_decay(-1.0)), "group 0"));
    EXPECT_TRUE(contains(refused(p, AdamWOptions().master_weight_bits(20)), "20"));
    EXPECT_TRUE(contains(refused(p, AdamWOptions().master_weight_bits(16).format(Format::kPaper)), "16"));
}
TEST(Options, OfAnotherOptimizerAreRefused) {
    const auto group = [](std::unique_ptr<torch::optim::OptimizerOptions> options) {
        return std::vector<torch::optim::OptimizerParamGroup>{
            {Tensors{torch::ones({2})}, std::move(options)}};
    };
    EXPECT_TRUE(
        contains(message_of<InvalidArgument>([&] { AdamW o(group(std::make_unique<LionOptions>())); }),
                 "another optimizer"));
    EXPECT_TRUE(contains(
        message_of<InvalidArgument>([&] { AdamW o(group(std::make_unique<torch::optim::AdamWOptions>())); }),
        "flashoptim::libtorch"));
}
/// A learning rate that a schedule made NaN must not reach the weights.
TEST(Options, ThatBecomeInvalidAreRefusedByTheStep) {
    const auto p = parameter(torch::ones({2}));
    AdamW optimizer(Tensors{p});
    p.mutable_grad() = torch::ones({2});
    optimizer.param_groups()[0].options().set_lr(std::nan(""));
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.step(); }), "group 0"));
    EXPECT_TRUE(same_bits(p, torch::ones({2})));
}
TEST(Options, OfStorageCannotChangeUnderAState) {
    const auto p = parameter(torch::ones({64, 64}), torch::kBFloat16);
    AdamW optimizer(Tensors{p});
    auto& options = dynamic_cast<AdamWOptions&>(optimizer.param_groups()[0].options());
    options.master_weight_bits(32);  // before the first step it may
    p.mutable_grad() = torch::ones_like(p);
    optimizer.step();
    EXPECT_EQ(optimizer.state_tensors(p)[0].second.scalar_type(), torch::kInt16);
    options.format(Format::kPaper);
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.step(); }), "format"));
}

/// The decay would be measured by 0, or by whatever rate of a warm-up comes first.
TEST(Options, OfDecoupledDecayNeedAFirstRate) {
    const Tensors p{parameter(torch::ones({2}))};
    const auto options = AdamWOptions(0.0).weight_decay(0.1).decouple_lr(true);
    EXPECT_TRUE(contains(refused(p, options), "initial_lr"));
    const AdamW with_peak(p, AdamWOptions(options).initial_lr(1e-3));
    EXPECT_EQ(dynamic_cast<const AdamWOptions&>(with_peak.param_groups()[0].options()).initial_lr(), 1e-3);

    AdamW optimizer(p, AdamWOptions(0.0).weight_decay(0.1));
    auto& group = dynamic_cast<AdamWOptions&>(optimizer.param_groups()[0].options());
    group.lr(1e-3);
    p[0].mutable_grad() = torch::ones({2});
    optimizer.step();
    EXPECT_EQ(group.initial_lr(), 0.0) << "the group was added with 0, not with this rate";
    group.decouple_lr(true);
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.step(); }), "initial_lr"));
    group.initial_lr(1e-3);
    optimizer.step();
    EXPECT_EQ(optimizer.step_count(p[0]), 2);
}

class Gradients : public ::testing::Test {
protected:
    /// The message of a step in which the second of two parameters has this gradient.
    std::string refused_gradient(const torch::Tensor& gradient) {
        AdamW optimizer(Tensors{good, bad});
        good.mutable_grad() = torch::ones_like(good);
        bad.mutable_grad() = gradient;
        const auto message = message_of<InvalidArgument>([&] { optimizer.step(); });
        EXPECT_TRUE(contains(message, "group 0, parameter 1")) << message;
        EXPECT_TRUE(same_bits(good, torch::ones({2}))) << "a refused step moved another parameter";
        EXPECT_EQ(optimizer.step_count(good), 0);
        EXPECT_TRUE(optimizer.state_tensors(good).empty()) << "a refused step made a state";
        bad.mutable_grad().reset();
        EXPECT_EQ(message_of<InvalidArgument>([&] { optimizer.set_gradient(bad, gradient); }), message);
        return message;
    }
    torch::Tensor good = parameter(torch::ones({2})), bad = parameter(torch::ones({3, 2}));
};

TEST_F(Gradients, ThatAreSparseAreRefused) {
    EXPECT_TRUE(contains(refused_gradient(torch::ones({3, 2}).to_sparse()), "sparse"));
}
TEST_F(Gradients, OfOtherDtypesAreRefused) {
    EXPECT_TRUE(contains(refused_gradient(torch::ones({3, 2}, torch::kFloat64)), "float64"));
    EXPECT_TRUE(contains(refused_gradient(torch::ones({3, 2}, torch::kInt64)), "int64"));
}
TEST_F(Gradients, OfOtherShapesAreRefused) {
    EXPECT_TRUE(contains(refused_gradient(torch::ones({2, 3})), "[2, 3]"));
}
TEST_F(Gradients, OnOtherDevicesAreRefused) {
    EXPECT_TRUE(contains(refused_gradient(torch::empty({3, 2}, torch::device(torch::kMeta))), "meta"));
}

/// A model of other shapes, or of a dtype that nobody steps, would be stepped with a state of another kind.
TEST(Parameters, ThatChangeAfterwardsAreRefused) {
    const auto p = parameter(torch::ones({3, 2}));
    AdamW optimizer(Tensors{p});
    auto changed = p;
    changed.set_data(torch::ones({3, 2}, torch::kFloat64));
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.step(); }), "float64 [3, 2]"));
    changed.set_data(torch::ones({4, 2}));
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.step(); }), "[4, 2]"));
    changed.set_data(torch::zeros({3, 2}));
    p.mutable_grad() = torch::ones({3, 2});
    optimizer.step();
    EXPECT_LT(p.max().item<double>(), 0.0) << "other memory of the same kind is stepped";
}

/// The same values one byte behind a multiple of their size, as a view into a file's bytes may lie.
torch::Tensor at_odd_address(const torch::Tensor& values, std::vector<char>& memory) {
    memory.resize(values.nbytes() + 64);
    auto* const begin = memory.data() + 64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64 + 1;
    std::memcpy(begin, values.const_data_ptr(), values.nbytes());
    return torch::from_blob(begin, values.sizes(), values.strides(), values.options());
}

TEST(OddAddresses, OfWeightsAreRefused) {
    std::vector<char> memory;
    const auto odd = at_odd_address(torch::ones({3, 2}, torch::kBFloat16), memory);
    EXPECT_TRUE(
        contains(message_of<InvalidArgument>([&] { const AdamW optimizer(Tensors{odd}); }), "address"));
    auto p = parameter(torch::ones({3, 2}), torch::kBFloat16);
    AdamW optimizer(Tensors{p});
    p.set_data(odd);
    p.mutable_grad() = torch::ones({3, 2}, torch::kBFloat16);
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.step(); }), "address"));
}

TEST(OddAddresses, OfEverythingThatIsReadGiveTheSameBits) {
    std::vector<char> memory[3];
    const auto values = torch::randn({30, 20});
    const auto plain = parameter(values, torch::kBFloat16), odd = parameter(values, torch::kBFloat16);
    AdamW a(Tensors{plain}), b(Tensors{odd});
    plain.mutable_grad() = values.to(torch::kBFloat16);
    odd.mutable_grad() = at_odd_address(plain.grad(), memory[0]);
    const auto scale = torch::full({}, 4.0F);
    a.set_grad_scale(scale);
    b.set_grad_scale(at_odd_address(scale, memory[1]));
    a.set_master(plain, values + 0.1);
    b.set_master(odd, at_odd_address(values + 0.1, memory[2]));
    for (auto* optimizer : {&a, &b}) optimizer->step();
    EXPECT_TRUE(same_everything(a, {plain}, b, {odd}));
}

/// A step count at its end, set or loaded, is refused by name and not wrapped to a negative one.
TEST(StepCounts, AtTheirEndAreRefused) {
    constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
    const auto p = parameter(torch::ones({64, 64}), torch::kBFloat16);
    AdamW optimizer(Tensors{p});
    p.mutable_grad() = torch::ones_like(p);
    for (const auto count : {kMost - 1, kMost}) {
        optimizer.set_step_count(p, count);
        optimizer.set_bad_elements(p, kMost);
        std::stringstream stream;
        torch::save(static_cast<torch::optim::Optimizer&>(optimizer), stream);
        const auto other = parameter(p, torch::kBFloat16);
        AdamW loaded(Tensors{other});
        torch::load(static_cast<torch::optim::Optimizer&>(loaded), stream);
        EXPECT_EQ(loaded.step_count(other), count);
        other.mutable_grad() = torch::full_like(other, std::numeric_limits<double>::quiet_NaN());
        if (count == kMost) {
            EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { loaded.step(); }), "2^63 - 1"));
        } else {
            loaded.step();
        }
        EXPECT_EQ(loaded.step_count(other), kMost);
        EXPECT_EQ(loaded.bad_elements(), kMost);
    }
}

TEST(Parameters, OfNobodyAreRefused) {
    AdamW optimizer(Tensors{torch::ones({2})});
    const auto stranger = torch::ones({2});
    EXPECT_TRUE(
        contains(message_of<InvalidArgument>([&] { (void)optimizer.master(stranger); }), "not a parameter"));
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { optimizer.set_gradient(stranger, stranger); }),
                         "not a parameter"));
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { (void)optimizer.step_count(torch::Tensor()); }),
                         "not a parameter"));
}

TEST(Arguments, OutOfRangeAreRefused) {
    const auto p = parameter(torch::ones({2}));
    AdamW optimizer(Tensors{p});
    EXPECT_FALSE(message_of<InvalidArgument>([&] { optimizer.set_gradient_factor(1.0 / 0.0); }).empty());
    EXPECT_FALSE(message_of<InvalidArgument>([&] { optimizer.set_threads(0); }).empty());
    EXPECT_FALSE(message_of<InvalidArgument>([&] { optimizer.set_step_count(p, -1); }).empty());
    EXPECT_FALSE(message_of<InvalidArgument>([&] { optimizer.set_master(p, torch::ones({3})); }).empty());
    EXPECT_FALSE(message_of<InvalidArgument>([&] {
                     optimizer.set_master(p, torch::ones({2}, torch::kInt32));
                 }).empty());
}

}  // namespace
}  // namespace flashoptim::libtorch
