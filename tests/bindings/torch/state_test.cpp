// Saving and loading: a run that was interrupted must go on as if it had not been, and a
// wrong file must change nothing.
#include <limits>
#include <sstream>

#include "support.h"

namespace flashoptim::libtorch {
namespace {

void load(torch::optim::Optimizer& optimizer, const std::string& bytes) {
    std::istringstream stream(bytes);
    torch::serialize::InputArchive archive;
    archive.load_from(stream);
    optimizer.load(archive);
}

void train(FlashOptimizer& optimizer, const Tensors& weights, int from, int to) {
    for (int step = from; step < to; ++step) {
        set_gradients(weights, step);
        optimizer.step();
    }
}

Tensors copies(const Tensors& weights) {
    Tensors result;
    for (const auto& w : weights) result.push_back(parameter(w, w.scalar_type()));
    return result;
}

TEST(State, ResumesBitForBitFromAnArchive) {
    for_each_kind([](Rule rule, Format format) {
        const auto whole = parameters(7, torch::kBFloat16);
        const auto a = make_optimizer(rule, format, whole);
        train(*a, whole, 0, 5);
        const auto archive = saved(*a);
        const auto resumed = copies(whole);
        const auto b = make_optimizer(rule, format, resumed, /*lr=*/0.5);  // the archive's options win
        load(*b, archive);
        EXPECT_TRUE(same_everything(*a, whole, *b, resumed));
        EXPECT_EQ(saved(*b), archive) << "equal states give equal archives";
        train(*a, whole, 5, 10);
        train(*b, resumed, 5, 10);
        EXPECT_TRUE(same_everything(*a, whole, *b, resumed));
    });
}

TEST(State, ResumesBitForBitFromTensors) {
    for_each_kind([](Rule rule, Format format) {
        const auto whole = parameters(7, torch::kFloat16);
        const auto a = make_optimizer(rule, format, whole);
        train(*a, whole, 0, 5);
        const auto resumed = copies(whole);
        const auto b = make_optimizer(rule, format, resumed);
        for (std::size_t n = 0; n < whole.size(); ++n) {
            std::map<std::string, torch::Tensor> tensors;
            for (const auto& [name, tensor] : a->state_tensors(whole[n]))
                tensors.emplace(name, tensor.clone());
            EXPECT_TRUE(tensors.contains("error_bits"));
            b->load_state_tensors(resumed[n], tensors);
            b->set_step_count(resumed[n], a->step_count(whole[n]));
        }
        train(*a, whole, 5, 10);
        train(*b, resumed, 5, 10);
        EXPECT_TRUE(same_everything(*a, whole, *b, resumed));
    });
}

/// torch::save and torch::load are what LibTorch's users call.
TEST(State, WorksWithTorchSaveAndLoad) {
    const auto whole = parameters(7, torch::kBFloat16);
    AdamW a(whole, 1e-2);
    train(a, whole, 0, 3);
    std::stringstream stream;
    torch::save(a, stream);
    const auto resumed = copies(whole);
    AdamW b(resumed, 1e-2);
    torch::load(b, stream);
    EXPECT_TRUE(same_everything(a, whole, b, resumed));
}

TEST(State, ArchiveKeepsOptionsOfEachGroupAndCountsOfEachParameter) {
    const auto make_groups = [](const Tensors& w, double lr) {
        std::vector<torch::optim::OptimizerParamGroup> groups;
        groups.emplace_back(Tensors{w[0]},
                            std::make_unique<AdamWOptions>(AdamWOptions(lr).decouple_lr(true)));
        groups.emplace_back(
            Tensors{w[1]},
            std::make_unique<AdamWOptions>(
                AdamWOptions(lr).betas({0.5, 0.6}).format(Format::kPaper).master_weight_bits(32)));
        return groups;
    };
    const auto whole = parameters(7, torch::kBFloat16);
    AdamW a(make_groups(whole, 1e-3), AdamWOptions());
    whole[0].mutable_grad() =
        torch::full(whole[0].sizes(), std::numeric_limits<float>::quiet_NaN()).to(torch::kBFloat16);
    a.step();
    a.param_groups()[0].options().set_lr(5e-4);
    const auto resumed = copies(whole);
    AdamW b(make_groups(resumed, 1.0), AdamWOptions());
    load(b, saved(a));
    const auto options = [](const AdamW& optimizer, std::size_t g) {
        return dynamic_cast<const AdamWOptions&>(optimizer.param_groups()[g].options());
    };
    EXPECT_TRUE(options(a, 0) == options(b, 0));
    EXPECT_TRUE(options(a, 1) == options(b, 1));
    EXPECT_DOUBLE_EQ(options(b, 0).initial_lr(), 1e-3);
    EXPECT_EQ(b.bad_elements(resumed[0]), whole[0].numel());
    EXPECT_EQ(b.bad_elements(), whole[0].numel());
    EXPECT_TRUE(b.state_tensors(resumed[1]).empty()) << "a parameter that had no gradient has no state";
}

/// State saved under channels_last, loaded into a row-major parameter: values stay, codes are made anew.
TEST(State, IsConvertedToAnotherMemoryOrder) {
    constexpr double kRate = 1e-2;
    for (const auto format : kFormats) {
        torch::manual_seed(5);
        const auto start = torch::randn({8, 16, 3, 3}).to(torch::kBFloat16);
        const auto last = parameter(start.contiguous(torch::MemoryFormat::ChannelsLast), torch::kBFloat16);
        ASSERT_FALSE(last.is_contiguous());
        const auto a = make_optimizer(Rule::kAdamW, format, {last}, kRate);
        train(*a, {last}, 0, 3);
        const auto row_major = parameter(last.contiguous(), torch::kBFloat16);
        const auto b = make_optimizer(Rule::kAdamW, format, {row_major}, kRate);
        load(*b, saved(*a));
        EXPECT_TRUE(same_bits(a->master(last), b->master(row_major))) << name_of(format);
        if (format == Format::kFloat32) {
            EXPECT_TRUE(
                torch::equal(a->state_tensors(last)[1].second, b->state_tensors(row_major)[1].second));
        }
        set_gradients({last}, 3);
        row_major.mutable_grad() = last.grad().contiguous();
        a->step();
        b->step();
        // The dither depends on the order: weights below 4 differ by up to their 24-bit unit, 2^-14.
        // Encoded again, a moment moves by up to 1/127 of its group's largest, which moves the step,
        // of size lr, by some percent.
        const auto bound = 0x1p-14 + (format == Format::kFloat32 ? 0.0 : 0.1 * kRate);
        const auto difference = a->master(last) - b->master(row_major);
        EXPECT_LE(difference.square().mean().sqrt().item<double>(), bound) << name_of(format);
    }
}

/// The tests below: one line that names the thing, and nothing changed.
class WrongState : public ::testing::Test {
protected:
    WrongState()
        : weights(parameters(7, torch::kBFloat16)),
          optimizer(make_optimizer(Rule::kAdamW, Format::kNative, weights)) {
        train(*optimizer, weights, 0, 3);
        before = saved(*optimizer);
        for (const auto& [name, tensor] : optimizer->state_tensors(weights[0]))
            state.emplace(name, tensor.clone());
    }
    void TearDown() override { EXPECT_EQ(saved(*optimizer), before) << "a refused state changed something"; }
    std::string refused() {
        return message_of<FormatError>([&] { optimizer->load_state_tensors(weights[0], state); });
    }
    std::string refused_archive(const std::string& bytes) {
        return message_of<FormatError>([&] { load(*optimizer, bytes); });
    }

    Tensors weights;
    std::unique_ptr<FlashOptimizer> optimizer;
    std::string before;
    std::map<std::string, torch::Tensor> state;
};

TEST_F(WrongState, MissingTensor) {
    state.erase("exp_avg_sq_scales");
    EXPECT_TRUE(contains(refused(), "exp_avg_sq_scales"));
}
TEST_F(WrongState, UnknownTensor) {
    state.emplace("momentum_buffer", torch::zeros({40, 70}));
    EXPECT_TRUE(contains(refused(), "momentum_buffer"));
}
TEST_F(WrongState, AnotherShape) {
    state["exp_avg"] = torch::zeros({70, 40}, torch::kInt8);
    EXPECT_TRUE(contains(refused(), "[70, 40]"));
}
TEST_F(WrongState, AnotherDtype) {
    state["exp_avg"] =
        state["exp_avg"].to(torch::kBFloat16);  // as Python's Optimizer.load_state_dict makes of codes
    EXPECT_TRUE(contains(refused(), "bfloat16"));
}
TEST_F(WrongState, ForbiddenCodeOfTheFirstMoment) {
    state["exp_avg"][3][5] = -128;
    EXPECT_TRUE(contains(refused(), "exp_avg"));
}
TEST_F(WrongState, ForbiddenCodeOfTheSecondMoment) {
    state["exp_avg_sq"][3][5] = 255;
    EXPECT_TRUE(contains(refused(), "exp_avg_sq"));
}
TEST_F(WrongState, ScaleThatIsNotFiniteOrNegative) {
    state["exp_avg_scales"][0][1] = std::numeric_limits<float>::infinity();
    EXPECT_TRUE(contains(refused(), "exp_avg"));
    state["exp_avg_scales"][0][1] = -1.0F;
    EXPECT_TRUE(contains(refused(), "exp_avg"));
}
TEST_F(WrongState, StridesOfAnotherTensor) {
    const std::int64_t strides[] = {70, 1, 1};
    const auto message = message_of<FormatError>(
        [&] { optimizer->load_state_tensors(weights[0], state, at::IntArrayRef(strides)); });
    EXPECT_TRUE(contains(message, "strides")) << message;
}

TEST_F(WrongState, ArchiveOfTorchsOptimizer) {
    torch::optim::AdamW theirs(weights, torch::optim::AdamWOptions(1e-3));
    torch::serialize::OutputArchive archive;
    theirs.save(archive);
    std::ostringstream stream;
    archive.save_to(stream);
    EXPECT_TRUE(contains(refused_archive(stream.str()), "flashoptim::libtorch::AdamW"));
}
TEST_F(WrongState, ArchiveOfAnotherRule) {
    const auto lion = make_optimizer(Rule::kLion, Format::kNative, weights);
    const auto message = refused_archive(saved(*lion));
    EXPECT_TRUE(contains(message, "Lion") && contains(message, "AdamW")) << message;
}
TEST_F(WrongState, ArchiveOfAnotherModel) {
    auto other = parameters(7, torch::kBFloat16);
    other[3] = parameter(torch::zeros({4, 3, 8, 5}), torch::kBFloat16);
    EXPECT_TRUE(contains(refused_archive(saved(*make_optimizer(Rule::kAdamW, Format::kNative, other))),
                         "parameter 3"));
}
TEST_F(WrongState, ArchiveOfOtherGroups) {
    const auto fewer = make_optimizer(Rule::kAdamW, Format::kNative, {weights[0]});
    EXPECT_TRUE(contains(refused_archive(saved(*fewer)), "parameters in group 0"));
    fewer->add_param_group(torch::optim::OptimizerParamGroup({weights[1]}));
    EXPECT_TRUE(contains(refused_archive(saved(*fewer)), "parameter groups"));
}
TEST_F(WrongState, ArchiveWithoutAState) {
    torch::serialize::OutputArchive archive;
    archive.write("flashoptim_archive", std::int64_t{1});
    archive.write("rule", std::string("AdamW"));
    archive.write("param_groups/size", std::int64_t{1});
    std::ostringstream stream;
    archive.save_to(stream);
    EXPECT_TRUE(contains(refused_archive(stream.str()), "damaged"));
}
TEST_F(WrongState, ArchiveOfALaterVersion) {
    torch::serialize::OutputArchive archive;
    archive.write("flashoptim_archive", std::int64_t{99});
    std::ostringstream stream;
    archive.save_to(stream);
    EXPECT_TRUE(contains(refused_archive(stream.str()), "99"));
}

/// An archive whose options no parameter can have, and no state from which that would be seen.
TEST_F(WrongState, ArchiveOfImpossibleOptions) {
    const auto archive_with = [&](AdamWOptions options) {
        options.initial_lr(1e-3);
        torch::serialize::OutputArchive archive, group, of_options;
        options.serialize(of_options);
        group.write("options", of_options);
        group.write("params/size", static_cast<std::int64_t>(weights.size()));
        for (std::size_t n = 0; n < weights.size(); ++n) {
            torch::serialize::OutputArchive of_parameter;
            of_parameter.write("dtype", std::string("bfloat16"));
            of_parameter.write("sizes", weights[n].sizes().vec());
            of_parameter.write("strides", weights[n].strides().vec());
            of_parameter.write("has_state", false);
            group.write("params/" + std::to_string(n), of_parameter);
        }
        archive.write("flashoptim_archive", std::int64_t{1});
        archive.write("rule", std::string("AdamW"));
        archive.write("param_groups/size", std::int64_t{1});
        archive.write("param_groups/0", group);
        std::ostringstream stream;
        archive.save_to(stream);
        return stream.str();
    };
    EXPECT_TRUE(contains(refused_archive(archive_with(AdamWOptions().master_weight_bits(17))), "17"));
    EXPECT_TRUE(contains(refused_archive(archive_with(AdamWOptions(-1.0))), "learning_rate"));
    set_gradients(weights, 3);
    AdamW other(copies(weights));
    load(other, archive_with(AdamWOptions(0.5)));  // the archive is refused for its options alone
    EXPECT_EQ(other.param_groups()[0].options().get_lr(), 0.5);
}

/// Another tensor at the address of one that is gone must not find its state.
TEST(State, GoesWithItsParameter) {
    auto old = parameter(torch::ones({64, 64}));
    const auto stays = parameter(torch::ones({3}));
    AdamW optimizer(Tensors{old, stays});
    old.mutable_grad() = torch::ones({64, 64});
    stays.mutable_grad() = torch::ones({3});
    optimizer.step();
    EXPECT_EQ(optimizer.state().size(), 2U);
    optimizer.param_groups()[0].params()[0] = parameter(torch::zeros({64, 64}));
    optimizer.step();
    EXPECT_EQ(optimizer.state().size(), 1U) << "memory grows with every exchange";
    EXPECT_EQ(optimizer.step_count(stays), 2);
    EXPECT_EQ(optimizer.step_count(optimizer.param_groups()[0].params()[0]), 0);
    optimizer.param_groups()[0].params()[0] = old;
    EXPECT_EQ(optimizer.step_count(old), 0);
}

/// Looking at gradients makes no state: formats may be chosen until the first step.
TEST(State, IsNotMadeByTheNorm) {
    const auto p = parameter(torch::ones({64, 64}), torch::kBFloat16);
    AdamW optimizer(Tensors{p});
    p.mutable_grad() = torch::ones_like(p);
    EXPECT_EQ(optimizer.grad_norm(), 64.0);
    EXPECT_TRUE(optimizer.state_tensors(p).empty());
    EXPECT_EQ(optimizer.memory_report().moments, 0U);
    dynamic_cast<AdamWOptions&>(optimizer.param_groups()[0].options()).format(Format::kPaper);
    optimizer.step();
    EXPECT_EQ(optimizer.step_count(p), 1);
}

/// A run in the paper's format goes on from its own infinite scales, which group
/// maxima of 65520 or more have.
TEST(State, OfThePaperMayHaveInfiniteScales) {
    const auto whole = parameter(torch::ones({4, 64}), torch::kBFloat16);
    const auto a = make_optimizer(Rule::kAdamW, Format::kPaper, {whole});
    whole.mutable_grad() = torch::full_like(whole, 1e7);
    a->step();
    const auto resumed = parameter(whole, torch::kBFloat16);
    const auto b = make_optimizer(Rule::kAdamW, Format::kPaper, {resumed});
    load(*b, saved(*a));
    EXPECT_TRUE(same_everything(*a, {whole}, *b, {resumed}));
    // Its moments are not numbers: another memory order needs numbers.
    const auto transposed = parameter(whole.t().contiguous().t(), torch::kBFloat16);
    const auto c = make_optimizer(Rule::kAdamW, Format::kPaper, {transposed});
    load(*c, saved(*a));  // weights of the saved order may come yet
    transposed.mutable_grad() = whole.grad();
    const auto before = transposed.clone();
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { c->step(); }), "memory order"));
    EXPECT_TRUE(same_bits(transposed, before));
}

/// An empty state is that before the first step.
TEST(State, CanBeTakenBack) {
    const auto a = parameters(7, torch::kBFloat16);
    const auto used = make_optimizer(Rule::kAdamW, Format::kNative, a);
    train(*used, a, 0, 2);
    const auto b = copies(a);
    const auto fresh = make_optimizer(Rule::kAdamW, Format::kNative, b);
    for (const auto& p : a) used->load_state_tensors(p, {});
    train(*used, a, 2, 4);
    train(*fresh, b, 2, 4);
    EXPECT_TRUE(same_everything(*used, a, *fresh, b));
}

}  // namespace
}  // namespace flashoptim::libtorch
