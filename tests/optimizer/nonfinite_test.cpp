// A gradient that is NaN, infinite or huge changes nothing and is counted. If these fail, one bad
// batch ruins a model for ever.
#include <limits>
#include <span>

#include "../support/step_cases.h"

namespace flashoptim {

namespace {

constexpr float kLimit = 0x1p48F;
const float kBelowLimit = std::nextafter(kLimit, 0.0F);
const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();

/// One optimizer over one tensor of three groups, the last one short.
struct Bench {
    static constexpr std::int64_t kRows = 2, kColumns = 80;

    Bench(const RuleCase& rule, const StorageCase& storage, NonFinite policy = NonFinite::kSkipElement,
          bool check_gradients = true)
        : weight(storage.weight, {kRows, kColumns}),
          gradient(DType::kFloat32, {kRows, kColumns}),
          optimizer(rule.rule, rule.hyperparameters, options_of(storage, policy, check_gradients)) {
        Noise noise(2);
        weight.fill([&] { return noise.normal(); });
        optimizer.add_parameter(weight.view(), "the layer");
        optimizer.set_gradient(0, gradient.view());
        for (int t = 0; t < 2; ++t) {
            gradient.fill([&] { return noise.normal(); });
            optimizer.step();
        }
        gradient.fill([&] { return noise.normal(); });
    }
    static OptimizerOptions options_of(const StorageCase& storage, NonFinite policy, bool check_gradients) {
        OptimizerOptions options;
        options.storage = storage.options;
        options.nonfinite = policy;
        options.check_gradients = check_gradients;
        return options;
    }

    Tensor weight, gradient;
    Optimizer optimizer;
};

/// A rule without weight decay, so that the effective gradient is the gradient.
RuleCase without_decay(RuleCase rule) {
    rule.hyperparameters.weight_decay = 0.0;
    return rule;
}

bool same_values(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

class NonFiniteOfEveryRule : public ::testing::TestWithParam<RuleCase> {};
INSTANTIATE_TEST_SUITE_P(Rules, NonFiniteOfEveryRule, ::testing::ValuesIn(rule_cases()),
                         [](const auto& rule) { return rule.param.name; });

}  // namespace

// Its weight stays to the bit; every other weight steps as if the bad gradient had been 0 there.
TEST_P(NonFiniteOfEveryRule, ABadElementIsSkippedAndItsNeighboursAreNot) {
    for (const auto& storage : storage_cases(GetParam().rule)) {
        const auto rule = without_decay(GetParam());
        for (const float bad : {kNan, -kNan, kInfinity, -kInfinity, kLimit, -kLimit, 1e30F}) {
            for (const std::size_t place : {0U, 31U, 40U, 79U, 80U, 159U}) {
                Bench with(rule, storage), without(rule, storage);
                const auto before = with.optimizer.master(0);
                const auto moments_before = test::moments_of(with.optimizer, 0);
                with.gradient.set(place, bad);
                without.gradient.set(place, 0.0F);
                EXPECT_EQ(with.optimizer.step().bad_elements, 1U) << storage.name << " " << bad;
                without.optimizer.step();
                EXPECT_EQ(with.optimizer.bad_elements(0), 1U);
                EXPECT_EQ(with.optimizer.step_count(0), 3);

                const auto after = with.optimizer.master(0);
                auto expected = without.optimizer.master(0);
                expected[place] = before[place];
                EXPECT_TRUE(same_values(after, expected)) << rule.name << " " << storage.name << " " << bad;
                const auto moments = test::moments_of(with.optimizer, 0);
                for (std::size_t n = 0; n < moments.size(); ++n) {
                    for (const float m : moments[n]) ASSERT_TRUE(std::isfinite(m)) << storage.name << n;
                    if (with.optimizer.storage(0).moments != MomentStorage::kFloat32 || moments[n].empty())
                        continue;
                    // Old moments stay to the bit where nothing is encoded.
                    EXPECT_EQ(bits_of(moments[n][place]), bits_of(moments_before[n][place]))
                        << rule.name << n;
                }
            }
        }
    }
}

TEST_P(NonFiniteOfEveryRule, JustBelowTheLimitIsAGradient) {
    for (const auto& storage : storage_cases(GetParam().rule)) {
        Bench bench(without_decay(GetParam()), storage);
        bench.gradient.set(5, kBelowLimit);
        bench.gradient.set(90, -kBelowLimit);
        const auto before = bench.optimizer.master(0);
        EXPECT_EQ(bench.optimizer.step().bad_elements, 0U);
        const auto after = bench.optimizer.master(0);
        EXPECT_TRUE(test::has_moved(before[5], after[5])) << storage.name;
        if (storage.options.format == Format::kPaper) continue;  // its fp16 scales end at 65504
        for (const float w : after) ASSERT_TRUE(std::isfinite(w)) << storage.name;
    }
}

// The limit is on what the rule sees: after unscaling and clipping, whatever the sign.
TEST_P(NonFiniteOfEveryRule, TheGradientIsJudgedAfterItsFactor) {
    for (const bool maximize : {false, true}) {
        auto rule = without_decay(GetParam());
        rule.hyperparameters.maximize = maximize;
        for (const auto& [value, factor, is_bad] : {std::tuple{0x1p50F, 0x1p-3, false},
                                                    {0x1p47F, 2.0, true},
                                                    {-0x1p47F, 2.0, true},
                                                    {0x1p47F, 1.0, false},
                                                    {kInfinity, 0.0, true},
                                                    {0x1p-20F, 0x1p68, true},
                                                    {3e38F, 1e-30, false}}) {
            Bench bench(rule, storage_cases()[3]);
            bench.gradient.fill([] { return 0.0F; });
            bench.gradient.set(33, value);
            bench.optimizer.set_gradient_factor(factor);
            EXPECT_EQ(bench.optimizer.step().bad_elements, is_bad ? 1U : 0U) << value << " " << factor;
        }
    }
}

// Coupled decay is part of the gradient, decoupled decay is not.
TEST(NonFinite, TheGradientIsJudgedWithItsL2Term) {
    for (const auto& rule : rule_cases()) {
        const bool is_coupled = rule.rule == Rule::kSGD || rule.rule == Rule::kAdam;
        auto strong = rule;
        strong.hyperparameters.weight_decay = 1.0;
        Tensor weight(DType::kFloat32, {40}), gradient(DType::kFloat32, {40});
        weight.set(7, 0x1p50F);
        Optimizer optimizer(strong.rule, strong.hyperparameters);
        optimizer.add_parameter(weight.view());
        optimizer.set_gradient(0, gradient.view());
        EXPECT_EQ(optimizer.step().bad_elements, is_coupled ? 1U : 0U) << rule.name;
        EXPECT_EQ(weight.get(7) == 0x1p50F, is_coupled) << rule.name;
    }
}

// A code whose group keeps its scale stays to the bit; where the scale changes the
// old value is encoded again.
TEST(NonFinite, KeptMomentsAreEncodedAgainOnlyWhereTheirScaleChanges) {
    const auto rule = without_decay(rule_cases()[4]);
    StorageOptions native{Format::kNative, 24, true, 0, 0};
    Bench bench(rule, {"native", native, DType::kBFloat16});
    auto& optimizer = bench.optimizer;
    bench.gradient.fill([] { return 1.0F; });
    for (int t = 0; t < 20; ++t) optimizer.step();
    const auto state = [&](std::size_t n) {
        return optimizer.state(0)[n].bytes;
    };  // error_bits, m, its scales, v, its scales
    const auto copy = [&](std::size_t n) { return std::vector<std::byte>(state(n).begin(), state(n).end()); };

    constexpr std::size_t kPlace = 70;  // in the short last group of the first row
    bench.gradient.set(kPlace, kNan);
    const auto first_codes = copy(1), first_scales = copy(2), second_codes = copy(3), second_scales = copy(4);
    optimizer.step();
    const auto same_scale = [&](std::size_t n, const std::vector<std::byte>& before) {
        return std::memcmp(state(n).data() + 4, before.data() + 4, 2) == 0;  // of the third group
    };
    ASSERT_TRUE(same_scale(2, first_scales) && same_scale(4, second_scales))
        << "the test means to keep these scales";
    EXPECT_EQ(state(1)[kPlace], first_codes[kPlace]);
    EXPECT_EQ(state(3)[kPlace], second_codes[kPlace]);

    const float first = optimizer.moment(0, 0)[kPlace], second = optimizer.moment(0, 1)[kPlace];
    bench.gradient.fill([] { return 1000.0F; });
    bench.gradient.set(kPlace, -kInfinity);
    optimizer.step();
    ASSERT_FALSE(same_scale(2, first_scales) || same_scale(4, second_scales));
    // A cell of the square law at code c is at most 4c + 2 units wide (twice has slope 2^(k+1) to
    // 2^(k+2) on [2^k, 2^(k+1)]), a unit being the scale / 16384 for m and / 65536 for r. The dither
    // rounds down or up by less than a cell.
    const auto scale_of = [&](std::size_t n) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, state(n).data() + 2 * sizeof bits, sizeof bits);
        return static_cast<float>(bfloat16::from_bits(bits));
    };
    const auto code_m =
        static_cast<float>(std::abs(static_cast<int>(static_cast<std::int8_t>(state(1)[kPlace]))));
    const auto code_v = static_cast<float>(state(3)[kPlace]);
    EXPECT_NEAR(optimizer.moment(0, 0)[kPlace], first, (4.0F * code_m + 6.0F) * scale_of(2) / 16384.0F);
    EXPECT_NEAR(std::sqrt(optimizer.moment(0, 1)[kPlace]), std::sqrt(second),
                (4.0F * code_v + 6.0F) * scale_of(4) / 65536.0F);
    EXPECT_GT(code_v, 0.0F);
    EXPECT_EQ(optimizer.bad_elements(0), 2U);
}

TEST_P(NonFiniteOfEveryRule, SkipStepAndErrorChangeNothingAtAll) {
    for (const auto& storage : storage_cases(GetParam().rule)) {
        for (const auto policy : {NonFinite::kSkipStep, NonFinite::kError}) {
            Bench bench(GetParam(), storage, policy);
            Tensor other(DType::kBFloat16, {100}), other_gradient(DType::kBFloat16, {100});
            other.fill([] { return 1.0F; });
            other_gradient.fill([] { return 1.0F; });
            bench.optimizer.add_parameter(other.view(), "the other");
            bench.optimizer.set_gradient(1, other_gradient.view());
            bench.gradient.set(17, kNan);
            bench.gradient.set(150, kInfinity);
            const auto before = bytes_of(bench.optimizer);
            if (policy == NonFinite::kError) {
                expect_refused<NonFiniteError>("the layer has 2 elements", [&] { bench.optimizer.step(); });
            } else {
                const auto report = bench.optimizer.step();
                EXPECT_TRUE(report.skipped);
                EXPECT_EQ(report.bad_elements, 2U);
            }
            EXPECT_TRUE(bytes_of(bench.optimizer) == before) << storage.name;
            EXPECT_EQ(bench.optimizer.step_count(0), 2);
            EXPECT_EQ(bench.optimizer.step_count(1), 0);
            EXPECT_EQ(bench.optimizer.bad_elements(0), 2U);
            EXPECT_EQ(bench.optimizer.bad_elements(1), 0U);

            // With gradient release the policy holds for each parameter, and a good step goes on.
            EXPECT_FALSE(bench.optimizer.step_parameter(1).skipped);
            EXPECT_EQ(bench.optimizer.step_count(1), 1);
            bench.gradient.fill([] { return 0.5F; });
            EXPECT_FALSE(bench.optimizer.step().skipped);
            EXPECT_EQ(bench.optimizer.step_count(0), 3);
        }
    }
}

// A model file with an infinite weight must train on in all others, and the infinity must not spread.
TEST_P(NonFiniteOfEveryRule, StoredInfinityAndNanStay) {
    for (const auto& storage : storage_cases(GetParam().rule)) {
        if (storage.options.format == Format::kPaper) continue;  // has no protection
        Bench bench(without_decay(GetParam()), storage);
        bench.weight.set(3, kInfinity);
        bench.weight.set(4, -kInfinity);
        bench.weight.set(100, kNan);
        bench.optimizer.refresh_masters(0);
        const auto before = bench.weight.bytes();
        const auto first = bench.optimizer.moment(0, 0);
        const auto masters = bench.optimizer.master(0);
        EXPECT_EQ(bench.optimizer.step().bad_elements, 0U) << storage.name;
        const auto after = bench.optimizer.master(0);
        EXPECT_EQ(after[3], kInfinity);
        EXPECT_EQ(after[4], -kInfinity);
        EXPECT_TRUE(std::isnan(after[100]));
        const auto size = size_of(storage.weight);
        EXPECT_EQ(std::memcmp(before.data() + 100 * size, bench.weight.bytes().data() + 100 * size, size), 0);
        if (!first.empty()) {
            const auto moved = bench.optimizer.moment(0, 0);
            EXPECT_TRUE(test::has_moved(first[3], moved[3])) << "its moments still move";
        }
        const auto others = [](const std::vector<float>& values) { return std::span(values).subspan(5, 95); };
        EXPECT_TRUE(test::has_moved(others(masters), others(after))) << "the others train on";
    }
}

TEST(NonFinite, ResultsThatAreTooLargeSaturateWithTheirSign) {
    for (const auto& [dtype, bits, largest] :
         {std::tuple{DType::kFloat32, 0, 0x1.fffffep127F},
          {DType::kBFloat16, 0, 0x1.fep127F},
          {DType::kBFloat16, 16, 0x1.fep127F},
          {DType::kBFloat16, 24, 0x1.fefep127F},    // q = 0x7f7f7f
          {DType::kBFloat16, 32, 0x1.fefffep127F},  // magnitude 0x7f7f7fff
          {DType::kFloat16, 0, 65504.0F},
          {DType::kFloat16, 16, 65504.0F},
          {DType::kFloat16, 24, 65504.0F + 127.0F / 8.0F},
          {DType::kFloat16, 32, 0x1.ffdffep15F}}) {
        Tensor weight(dtype, {2}), gradient(DType::kFloat32, {2});
        weight.fill([] { return 1.0F; });
        gradient.set(0, -0x1p47F);
        gradient.set(1, 0x1p47F);
        OptimizerOptions options;
        options.storage.master_weight_bits = bits;
        SGD optimizer({.learning_rate = 1e30}, options);
        optimizer.add_parameter(weight.view());
        optimizer.set_gradient(0, gradient.view());
        EXPECT_EQ(optimizer.step().bad_elements, 0U);
        EXPECT_NEAR(optimizer.master(0)[0] / largest, 1.0F, 0x1p-22F) << name_of(dtype) << bits;
        EXPECT_NEAR(optimizer.master(0)[1] / -largest, 1.0F, 0x1p-22F) << name_of(dtype) << bits;
        EXPECT_TRUE(std::isfinite(weight.get(0)) && std::isfinite(weight.get(1)));
    }
}

// An infinite learning rate times a zero update is NaN: the element is kept and counted.
TEST(NonFinite, AResultThatIsNanKeepsTheElement) {
    Tensor weight(DType::kBFloat16, {40}), gradient(DType::kFloat32, {40});
    weight.fill([] { return 1.0F; });
    gradient.set(1, 1.0F);
    AdamW optimizer({.learning_rate = 1e300, .weight_decay = 0.0});
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    EXPECT_EQ(optimizer.step().bad_elements, 39U);
    EXPECT_EQ(weight.get(0), 1.0F);
    EXPECT_LT(weight.get(1), -3e38F);
    EXPECT_EQ(optimizer.moment(0, 0)[0], 0.0F);
}

TEST(NonFinite, EmptyTensorsAdvanceTheirStepCount) {
    Tensor empty(DType::kBFloat16, {0, 5});
    for (const auto policy : {NonFinite::kSkipElement, NonFinite::kSkipStep, NonFinite::kError}) {
        OptimizerOptions options;
        options.nonfinite = policy;
        AdamW optimizer({}, options);
        optimizer.add_parameter({nullptr, DType::kBFloat16, {0, 5}, {}});
        optimizer.step();
        EXPECT_EQ(optimizer.step_count(0), 0);
        optimizer.set_gradient(0, {nullptr, DType::kFloat32, {0, 5}, {}});
        EXPECT_EQ(optimizer.grad_norm(), 0.0);
        optimizer.step();
        optimizer.step_parameter(0);
        EXPECT_EQ(optimizer.step_count(0), 2);
        EXPECT_TRUE(optimizer.master(0).empty());
        EXPECT_TRUE(optimizer.moment(0, 0).empty());
    }
}

// The paper's own behaviour, for exact comparison: a NaN goes into its weight.
TEST(NonFinite, PaperTakesGradientsAsTheyComeWhereTheCheckIsOff) {
    StorageCase paper{"paper", {Format::kPaper, 24, true, 0, 0}, DType::kBFloat16};
    for (const bool check : {true, false}) {
        Bench bench(rule_cases()[4], paper, NonFinite::kSkipElement, check);
        bench.gradient.set(50, kNan);
        EXPECT_EQ(bench.optimizer.step().bad_elements, check ? 1U : 0U);
        EXPECT_EQ(std::isnan(bench.weight.get(50)), !check);
    }
    // The switch is for the paper's format only.
    Bench native(rule_cases()[4], storage_cases()[3], NonFinite::kSkipElement, false);
    native.gradient.set(50, kNan);
    EXPECT_EQ(native.optimizer.step().bad_elements, 1U);
}

}  // namespace flashoptim
