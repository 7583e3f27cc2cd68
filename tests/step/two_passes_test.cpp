// A step in two passes: with a float32 direction update_moments() and apply_update() have the bits of step(),
// whatever the rule, the storage, the gradients and the backend are.
#include <array>
#include <limits>

#include "../support/step_cases.h"

namespace flashoptim {

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A parameter with its state over memory of its own.
struct Parameter {
    Parameter(const RuleCase& rule, const StorageCase& storage, DType gradient_dtype,
              const std::vector<std::int64_t>& shape, DType direction_dtype = DType::kFloat32)
        : weight(storage.weight, shape),
          gradient(gradient_dtype, shape),
          direction(direction_dtype, shape),
          layout(layout_of(weight.view(), "weight")) {
        plan = plan_storage(rule.rule, rule.hyperparameters, storage.options, storage.weight, layout);
        for (int place = 0; place < kMaxBuffers; ++place) {
            state[static_cast<std::size_t>(place)].resize(plan.at(place).bytes());
        }
        Noise noise(1);
        weight.fill([&] { return noise.normal(); });
        item = new_item(rule);
    }

    StepItem new_item(const RuleCase& rule) {
        StepItem made;
        made.layout = &layout;
        made.plan = plan;
        made.weight = weight.bytes().data();
        for (int place = 0; place < kMaxBuffers; ++place) {
            auto& buffer = state[static_cast<std::size_t>(place)];
            made.state.at(place) = buffer.empty() ? nullptr : buffer.data();
        }
        made.gradient = gradient.bytes().data();
        made.gradient_dtype = gradient.view().dtype;
        made.direction = direction.bytes().data();
        made.direction_dtype = direction.view().dtype;
        made.rule = rule.rule;
        made.hyperparameters = rule.hyperparameters;
        return made;
    }
    /// Gradients of step t, of which some are bad.
    void draw_gradient(int t) {
        Noise noise(100 + static_cast<std::uint64_t>(t));
        gradient.fill([&] { return noise.wide(); });
        const auto size = gradient.numel();
        if (t == 1) gradient.set(size / 2, kNan);
        if (t == 2) gradient.set(size - 1, kInfinity);
        item.step = t + 1;
        item.has_momentum = t > 0;
        item.gradient_factor = t == 3 ? 0.25F : 1.0F;
    }
    [[nodiscard]] std::vector<std::byte> bytes() const {
        auto all = weight.bytes();
        for (const auto& buffer : state) all.insert(all.end(), buffer.begin(), buffer.end());
        return all;
    }

    Tensor weight, gradient, direction;
    Layout layout;
    StoragePlan plan;
    std::array<std::vector<std::byte>, kMaxBuffers> state;
    StepItem item;
};

std::uint64_t step_twice(StepItem& item, ThreadPool& pool, Backend backend) {
    const auto bad = update_moments({&item, 1}, pool, backend);
    EXPECT_EQ(item.bad_elements, bad);
    EXPECT_EQ(apply_update({&item, 1}, pool, backend), bad);
    return bad;
}

std::vector<StorageCase> storages_with_two_passes() {
    auto cases = storage_cases();
    std::erase_if(cases, [](const auto& storage) { return storage.options.format == Format::kPaper; });
    return cases;
}

class TwoPasses : public ::testing::TestWithParam<RuleCase> {};
INSTANTIATE_TEST_SUITE_P(Rules, TwoPasses, ::testing::ValuesIn(rule_cases()),
                         [](const auto& rule) { return rule.param.name; });

const StorageCase kNative{"native", {Format::kNative, 24, true, 0, 0}, DType::kBFloat16};

void expect_bits_of_one(const RuleCase& rule, const StorageCase& storage, DType gradient,
                        const std::vector<std::int64_t>& shape) {
    ThreadPool pool(1);
    Parameter fused(rule, storage, gradient, shape);
    std::vector<std::uint64_t> bad;
    std::vector<std::vector<std::byte>> expected;
    for (int t = 0; t < 4; ++t) {
        fused.draw_gradient(t);
        bad.push_back(step({&fused.item, 1}, pool, Backend::kScalar));
        expected.push_back(fused.bytes());
    }
    for (const auto backend : available_backends()) {
        Parameter twice(rule, storage, gradient, shape);
        for (std::size_t t = 0; t < 4; ++t) {
            twice.draw_gradient(static_cast<int>(t));
            EXPECT_EQ(step_twice(twice.item, pool, backend), bad[t]);
            ASSERT_TRUE(twice.bytes() == expected[t])
                << rule.name << " " << storage.name << " gradients in " << name_of(gradient) << " on "
                << name_of(backend) << " in step " << t;
        }
    }
}

}  // namespace

TEST_P(TwoPasses, HaveTheBitsOfOneWithEveryStorageAndGradient) {
    for (const auto& storage : storages_with_two_passes()) {
        for (const auto gradient : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
            expect_bits_of_one(GetParam(), storage, gradient, {9, 67});
            expect_bits_of_one(GetParam(), storage, gradient, {640});
        }
    }
}

// Parts of a direction, rows in a part, rows longer than one, a last part of one element.
TEST_P(TwoPasses, HaveTheBitsOfOneWithEveryShape) {
    for (std::int64_t size = 1; size <= 70; ++size) {
        expect_bits_of_one(GetParam(), kNative, DType::kBFloat16, {size});
    }
    const std::vector<std::vector<std::int64_t>> shapes = {{5, 33}, {2, 40001}, {2049},
                                                           {65537}, {33, 992},  {}};
    for (const auto& shape : shapes) expect_bits_of_one(GetParam(), kNative, DType::kBFloat16, shape);
}

// Weights that are Inf, NaN or as large as can be, with learning rates that make updates so.
TEST_P(TwoPasses, HaveTheBitsOfOneOutOfTheOrdinary) {
    ThreadPool pool(1);
    for (const auto& storage : storages_with_two_passes()) {
        for (const double learning_rate : {0.0, 0.3, 1e30}) {
            auto rule = GetParam();
            rule.hyperparameters.learning_rate = learning_rate;
            rule.hyperparameters.epsilon = 0.0;
            for (const auto backend : available_backends()) {
                Parameter fused(rule, storage, DType::kFloat32, {640}),
                    twice(rule, storage, DType::kFloat32, {640});
                for (auto* parameter : {&fused, &twice}) {
                    std::size_t n = 0;
                    for (const float w : {kInfinity, -kInfinity, kNan, 65504.0F, 3.0e38F, 0.0F, -0.0F}) {
                        parameter->weight.set(70 * n++ + 5, w);
                    }
                }
                for (int t = 0; t < 4; ++t) {
                    fused.draw_gradient(t);
                    twice.draw_gradient(t);
                    for (auto* parameter : {&fused, &twice}) {
                        parameter->gradient.set(3, 0x1.fp47F);
                        parameter->gradient.set(100, t % 2 == 0 ? 0x1.fp47F : 0.0F);
                        parameter->gradient.set(200, 1e-30F);
                    }
                    const auto bad = step({&fused.item, 1}, pool, backend);
                    update_moments({&twice.item, 1}, pool, backend);
                    EXPECT_EQ(twice.item.bad_elements, bad);
                    apply_update({&twice.item, 1}, pool, backend);
                    ASSERT_TRUE(twice.bytes() == fused.bytes())
                        << rule.name << " " << storage.name << " " << name_of(backend)
                        << " at a learning rate of " << learning_rate << " in step " << t;
                }
            }
        }
    }
}

TEST_P(TwoPasses, RoundADirectionInBfloat16ToNearestEven) {
    ThreadPool pool(2);
    for (const auto backend : available_backends()) {
        Parameter exact(GetParam(), kNative, DType::kBFloat16, {3, 2731}),
            rounded(GetParam(), kNative, DType::kBFloat16, {3, 2731}, DType::kBFloat16);
        for (int t = 0; t < 3; ++t) {
            exact.draw_gradient(t);
            rounded.draw_gradient(t);
            update_moments({&exact.item, 1}, pool, backend);
            update_moments({&rounded.item, 1}, pool, backend);
            EXPECT_TRUE(exact.state == rounded.state);
            for (std::size_t n = 0; n < exact.direction.numel(); ++n) {
                const bfloat16 expected(exact.direction.get(n));
                ASSERT_EQ(bits_of(rounded.direction.get(n)), bits_of(static_cast<float>(expected))) << n;
            }
        }
    }
}

// What a bad element has in the direction, and what the second pass makes of it.
TEST_P(TwoPasses, MarkASkippedElementAndKeepIt) {
    ThreadPool pool(1);
    Parameter parameter(GetParam(), kNative, DType::kFloat32, {96});
    parameter.draw_gradient(0);
    parameter.gradient.set(40, kNan);
    const auto weights = parameter.weight.values();
    EXPECT_EQ(update_moments({&parameter.item, 1}, pool), 1U);
    EXPECT_EQ(parameter.weight.values(), weights);
    for (std::size_t n = 0; n < 96; ++n) EXPECT_EQ(std::isnan(parameter.direction.get(n)), n == 40) << n;
    parameter.item.gradient = nullptr;  // the second pass looks at neither
    for (int place = 1; place < kMaxBuffers; ++place) parameter.item.state.at(place) = nullptr;
    EXPECT_EQ(apply_update({&parameter.item, 1}, pool), 1U);
    EXPECT_EQ(bits_of(parameter.weight.get(40)), bits_of(weights[40]));
}

// The first pass reads weights for coupled decay alone.
TEST_P(TwoPasses, NeedWeightsInTheFirstOnlyForCoupledDecay) {
    ThreadPool pool(1);
    Parameter parameter(GetParam(), kNative, DType::kFloat32, {96});
    parameter.draw_gradient(0);
    parameter.item.weight = nullptr;
    parameter.item.state.at(kCorrectionPlace) = nullptr;
    if (traits_of(GetParam().rule).decay == Decay::kCoupled) {
        expect_refused<InvalidArgument>("its weight is null",
                                        [&] { update_moments({&parameter.item, 1}, pool); });
        parameter.item.hyperparameters.weight_decay = 0.0;
    }
    EXPECT_EQ(update_moments({&parameter.item, 1}, pool), 0U);
    expect_refused<InvalidArgument>("its weight is null", [&] { apply_update({&parameter.item, 1}, pool); });
}

TEST_P(TwoPasses, MayWriteDirectionsOverGradients) {
    ThreadPool pool(1);
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16}) {
        for (const auto backend : available_backends()) {
            Parameter apart(GetParam(), kNative, dtype, {3, 2731}, dtype),
                same(GetParam(), kNative, dtype, {3, 2731});
            same.item.direction = same.gradient.bytes().data();
            same.item.direction_dtype = dtype;
            for (int t = 0; t < 3; ++t) {
                apart.draw_gradient(t);
                same.draw_gradient(t);
                step_twice(apart.item, pool, backend);
                step_twice(same.item, pool, backend);
                ASSERT_TRUE(apart.bytes() == same.bytes()) << name_of(backend);
            }
        }
    }
}

TEST(TwoPassesOfAList, DoNotDependOnThreadsAndNeighbours) {
    const auto rules = rule_cases();
    const std::vector<std::vector<std::int64_t>> shapes = {{2, 40001}, {700, 67}, {65537},
                                                           {3},        {0, 7},    {33, 992}};
    std::vector<std::vector<std::byte>> expected;
    for (const int threads : {1, 2, 8}) {
        ThreadPool pool(threads);
        std::vector<std::unique_ptr<Parameter>> parameters;
        for (std::size_t n = 0; n < 12; ++n) {
            parameters.push_back(std::make_unique<Parameter>(
                rules[n % rules.size()], kNative, DType::kBFloat16, shapes[n % shapes.size()],
                n % 3 == 0 ? DType::kBFloat16 : DType::kFloat32));
        }
        for (int t = 0; t < 3; ++t) {
            std::vector<StepItem> items;
            for (auto& parameter : parameters) {
                if (parameter->gradient.numel() != 0) parameter->draw_gradient(t);
                items.push_back(parameter->item);
            }
            update_moments(items, pool);
            apply_update(items, pool);
        }
        std::vector<std::vector<std::byte>> bytes;
        for (const auto& parameter : parameters) bytes.push_back(parameter->bytes());
        if (expected.empty()) expected = bytes;
        EXPECT_TRUE(bytes == expected) << threads << " threads";
    }
}

// A caller's own direction, as a matrix rule forms it.
TEST(ApplyUpdate, TakesAnyDirectionAndScalars) {
    ThreadPool pool(1);
    const RuleCase rule{"AdamW", Rule::kAdamW, {}};
    for (const auto backend : available_backends()) {
        Parameter parameter(rule, {"fp32", {Format::kFloat32, 0, true, 0, 0}, DType::kFloat32},
                            DType::kFloat32, {7});
        parameter.weight.fill([] { return 2.0F; });
        const std::array<float, 7> directions = {1.0F, -1.0F, 0.0F, 0x1p60F, kInfinity, -kInfinity, kNan};
        for (std::size_t n = 0; n < 7; ++n) parameter.direction.set(n, directions[n]);
        parameter.item.update = {0.5F, 0.25F};
        EXPECT_EQ(apply_update({&parameter.item, 1}, pool, backend), 1U);
        constexpr float kLargest = std::numeric_limits<float>::max();
        const std::vector<float> expected = {0.0F, 1.0F, 0.5F, -0x1p59F, -kLargest, kLargest, 2.0F};
        EXPECT_EQ(parameter.weight.values(), expected) << name_of(backend);
    }
}

TEST(TwoPassesOfAList, RefuseWhatTheyCannotStepAndChangeNothing) {
    ThreadPool pool(1);
    const RuleCase rule{"AdamW", Rule::kAdamW, {}};
    Parameter good(rule, kNative, DType::kFloat32, {96});
    good.draw_gradient(0);
    const auto expect_both_refused = [&](const std::string& part, Parameter& wrong) {
        const auto before = good.bytes();
        std::vector<StepItem> items = {good.item, wrong.item};
        expect_refused<InvalidArgument>(part, [&] { update_moments(items, pool); });
        expect_refused<InvalidArgument>(part, [&] { apply_update(items, pool); });
        EXPECT_TRUE(good.bytes() == before);
    };
    Parameter wrong(rule, kNative, DType::kFloat32, {96});
    wrong.item.direction = nullptr;
    expect_both_refused("tensor 1: its direction is null", wrong);
    wrong.item.direction = wrong.direction.bytes().data() + 2;
    expect_both_refused("the direction of tensor 1", wrong);
    wrong.item.direction = wrong.direction.bytes().data();
    wrong.item.direction_dtype = DType::kFloat16;
    expect_both_refused("its direction is float16: directions must be float32 or bfloat16", wrong);
    wrong.item.direction_dtype = DType::kFloat32;
    wrong.item.step = 0;
    expect_both_refused("step count 0", wrong);
    wrong.item.step = 1;
    wrong.item.rule = static_cast<Rule>(200);
    expect_both_refused("a plan that is not of its rule", wrong);
    Parameter paper(rule, {"paper", {Format::kPaper, 24, true, 0, 0}, DType::kBFloat16}, DType::kFloat32,
                    {96});
    expect_both_refused("no step in two passes", paper);
}

}  // namespace flashoptim
