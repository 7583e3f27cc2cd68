// The table of rules, and what every language forces beside it. If one of these fails, an optimizer has other
// defaults, ranges or names in one language than in another.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "flashoptim/flashoptim.h"

namespace flashoptim {

namespace {

template <class OfRule>
void expect_defaults_of_table(Rule rule, const OfRule& of_rule) {
    const auto given = of_rule.hyperparameters(), wanted = default_hyperparameters(rule);
    for (const auto& field : kHyperparameterFields) {
        EXPECT_EQ(field.of(given), field.of(wanted)) << traits_of(rule).name << ", " << field.name;
    }
}

Hyperparameters with(Rule rule, const HyperparameterField& field, double value) {
    auto h = default_hyperparameters(rule);
    field.set(h, value);
    return h;
}

}  // namespace

TEST(TableOfRules, GivesTheDefaultsOfTheClasses) {
    expect_defaults_of_table(Rule::kSGD, SGDHyperparameters{});
    expect_defaults_of_table(Rule::kSGDW, SGDHyperparameters{});
    expect_defaults_of_table(Rule::kAdam, AdamHyperparameters{});
    expect_defaults_of_table(Rule::kAdamW, AdamWHyperparameters{});
    expect_defaults_of_table(Rule::kLion, LionHyperparameters{});
    expect_defaults_of_table(Rule::kAdEMAMix, AdEMAMixHyperparameters{});
    expect_defaults_of_table(Rule::kAdan, AdanHyperparameters{});
}

TEST(TableOfRules, HasOneNameForEachThing) {
    std::set<std::string_view> rules, fields;
    for (const auto& field : kHyperparameterFields) {
        EXPECT_TRUE(fields.insert(field.name).second) << field.name;
        EXPECT_NE(field.number == nullptr, field.flag == nullptr) << field.name;
    }
    for (const auto& traits : kRules) {
        EXPECT_TRUE(rules.insert(traits.name).second) << traits.name;
        EXPECT_EQ(rule_named(traits.name), traits.rule);
        std::set<std::string_view> moments;
        for (const auto& moment : traits.moments) {
            EXPECT_TRUE(moments.insert(moment.name).second) << moment.name;
            EXPECT_EQ(moment.scales_name, std::string(moment.name) + "_scales");
        }
        for (int place = 0; place < kMaxBuffers; ++place) {
            const auto name = buffer_name(traits.rule, place);
            EXPECT_EQ(name.empty(), moment_of_place(place) >= static_cast<int>(traits.moments.size()) &&
                                        place != kCorrectionPlace);
            if (name.empty()) continue;
            EXPECT_EQ(buffer_place(traits.rule, name), place);
        }
        EXPECT_EQ(buffer_place(traits.rule, ""), std::nullopt);
        EXPECT_EQ(buffer_place(traits.rule, "weight"), std::nullopt);
    }
}

TEST(TableOfRules, HasTheRangesThatAreChecked) {
    const auto below = [](double x) { return std::nextafter(x, -1e300); };
    for (const auto& traits : kRules) {
        EXPECT_NO_THROW(check_hyperparameters(traits.rule, default_hyperparameters(traits.rule)));
        for (const auto& read : traits.reads) {
            if (read.field.number == nullptr) continue;
            const auto check = [&](double value) {
                check_hyperparameters(traits.rule, with(traits.rule, read.field, value));
            };
            const auto& [lowest, highest, excludes_highest] = read.range;
            SCOPED_TRACE(std::string(traits.name) + ", " + std::string(read.field.name));
            EXPECT_NO_THROW(check(lowest));
            EXPECT_THROW(check(below(lowest)), InvalidArgument);
            EXPECT_THROW(check(std::numeric_limits<double>::quiet_NaN()), InvalidArgument);
            EXPECT_THROW(check(std::numeric_limits<double>::infinity()), InvalidArgument);
            if (std::isinf(highest)) continue;
            EXPECT_NO_THROW(check(below(highest)));
            EXPECT_THROW(check(std::nextafter(highest, 1e300)), InvalidArgument);
            if (excludes_highest) {
                EXPECT_THROW(check(highest), InvalidArgument);
            } else {
                EXPECT_NO_THROW(check(highest));
            }
        }
    }
}

// An enumerator of a newer header, or one that was never set.
TEST(TableOfRules, RefusesARuleThatItDoesNotHave) {
    const auto layout = layout_of({nullptr, DType::kFloat32, {4}, {}});
    for (const int number : {static_cast<int>(kRules.size()), 50, 255}) {
        const auto none = static_cast<Rule>(number);
        EXPECT_EQ(name_of(none), "unknown");
        EXPECT_EQ(buffer_name(none, 0), "");
        EXPECT_EQ(buffer_place(none, "exp_avg"), std::nullopt);
        EXPECT_THROW(check_hyperparameters(none, {}), InvalidArgument);
        EXPECT_THROW(plan_storage(none, {}, {}, DType::kFloat32, layout), InvalidArgument);
        EXPECT_THROW(Optimizer(none, {}), InvalidArgument);
    }
    EXPECT_EQ(buffer_name(Rule::kAdamW, -1), "");
    EXPECT_EQ(buffer_name(Rule::kAdamW, kMaxBuffers), "");
}

// Buffers that no rule has room for would be written behind the end of another.
TEST(TableOfRules, GivesEveryMomentItsBuffers) {
    const std::vector<std::int64_t> shape{64, 96};
    const auto layout = layout_of({nullptr, DType::kBFloat16, shape, {}});
    for (const auto& traits : kRules) {
        auto h = default_hyperparameters(traits.rule);
        for (const auto& moment : traits.moments) {
            if (moment.needs != nullptr) h.*moment.needs = 0.5;
        }
        for (const auto format : {Format::kNative, Format::kPaper, Format::kFloat32}) {
            if (format == Format::kPaper && !traits.has_paper_order) continue;
            const StorageOptions options{format, 24, true, 0, 0};
            const auto plan = plan_storage(traits.rule, h, options, DType::kBFloat16, layout);
            for (int n = 0; n < kMaxMoments; ++n) {
                const bool is_there = n < static_cast<int>(traits.moments.size());
                EXPECT_EQ(plan.codes(n).count, is_there ? 64 * 96 : 0);
                const auto kind = is_there ? traits.moments[static_cast<std::size_t>(n)].kind : MomentKind{};
                const bool is_coded = kind == MomentKind::kSigned || kind == MomentKind::kSquared;
                EXPECT_EQ(plan.scales(n).count,
                          is_there && is_coded && format != Format::kFloat32 ? 64 * 3 : 0);
            }
        }
    }
}

}  // namespace flashoptim
