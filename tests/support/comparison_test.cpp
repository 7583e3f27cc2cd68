// The comparisons that other tests use. If one of them lost a NaN, every test that uses it would pass
// over state that has come to nothing.
#include "comparison.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "step_cases.h"

namespace flashoptim::test {

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Three numbers with `value` in every place in turn.
std::vector<std::array<double, 3>> with_in_each_place(double value) {
    return {{value, 1.0, 2.0}, {1.0, value, 2.0}, {1.0, 2.0, value}};
}

}  // namespace

TEST(Comparison, ANanIsSeenInEveryPlace) {
    const std::array<double, 3> numbers = {1.0, -3.0, 2.0};
    EXPECT_EQ(largest_magnitude(numbers), 3.0);
    EXPECT_FALSE(has_nan(numbers));
    for (const double nan : {kNan, -kNan}) {
        for (const auto& values : with_in_each_place(nan)) {
            EXPECT_TRUE(std::isnan(largest_magnitude(values)));
            EXPECT_TRUE(has_nan(values));
            EXPECT_TRUE(std::isnan(largest_distance(values, numbers)));
            EXPECT_TRUE(std::isnan(largest_distance(numbers, values)));
            EXPECT_TRUE(std::isnan(largest_distance(values, values)));
            EXPECT_FALSE(has_moved(numbers, values));
            EXPECT_FALSE(has_moved(values, numbers));
        }
    }
}

TEST(Comparison, InfinityIsNoDistanceThatPasses) {
    const std::array<double, 3> numbers = {1.0, 1.0, 2.0};
    for (const auto& values : with_in_each_place(kInfinity)) {
        EXPECT_EQ(largest_magnitude(values), kInfinity);
        EXPECT_FALSE(largest_distance(values, numbers) <= 1e300);
        EXPECT_FALSE(largest_distance(values, values) <= 1e300)
            << "the distance of two infinities is unknown";
    }
}

TEST(Comparison, OfNumbers) {
    const std::vector<float> a = {1.0F, 2.0F}, b = {1.0F, 2.5F}, none;
    EXPECT_EQ(largest_distance(a, b), 0.5);
    EXPECT_EQ(largest_distance(a, a), 0.0);
    EXPECT_EQ(largest_distance(a, none), kInfinity);
    EXPECT_EQ(largest_distance(none, none), 0.0);
    EXPECT_TRUE(has_moved(a, b));
    EXPECT_FALSE(has_moved(a, a));
    EXPECT_TRUE(has_moved(1.0F, 2.0F) && has_moved(2.0F, 1.0F));
    EXPECT_FALSE(has_moved(1.0F, 1.0F) || has_moved(1.0F, NAN) || has_moved(NAN, 1.0F) ||
                 has_moved(NAN, NAN));
}

// Whatever of a parameter is NaN, in whatever format it lies in memory.
TEST(Comparison, ANanInAnyBufferOfAnOptimizerIsSeen) {
    for (const auto& rule : rule_cases()) {
        for (const auto& storage : storage_cases(rule.rule)) {
            SCOPED_TRACE(rule.name + " " + storage.name);
            OptimizerOptions options;
            options.storage = storage.options;
            Tensor weight(storage.weight, {2, 32}), gradient(DType::kFloat32, {2, 32});
            gradient.fill([] { return 0.5F; });
            Optimizer optimizer(rule.rule, rule.hyperparameters, options);
            optimizer.add_parameter(weight.view(), "w");
            optimizer.set_gradient(0, gradient.view());
            optimizer.step();
            EXPECT_TRUE(holds_numbers(optimizer));
            for (const auto& buffer : optimizer.state(0)) {
                if (!is_floating(buffer.dtype)) continue;  // codes and corrections of a number are numbers
                const auto size = size_of(buffer.dtype);
                const std::vector<std::byte> kept(buffer.bytes.begin(), buffer.bytes.end());
                std::memset(buffer.bytes.data() + buffer.bytes.size() - size, 0xff, size);
                EXPECT_FALSE(holds_numbers(optimizer)) << buffer.name;
                std::copy(kept.begin(), kept.end(), buffer.bytes.begin());
            }
            weight.set(63, NAN);
            EXPECT_FALSE(holds_numbers(optimizer)) << "weight";
        }
    }
}

}  // namespace flashoptim::test
