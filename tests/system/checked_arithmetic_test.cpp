// Numbers of callers and files at their ends. If these fail, a hostile shape or count is undefined
// behaviour instead of an error.
#include "flashoptim/system/checked_arithmetic.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace flashoptim {

namespace {

constexpr auto kMost = std::numeric_limits<std::int64_t>::max(),
               kLeast = std::numeric_limits<std::int64_t>::min();

}  // namespace

TEST(CheckedArithmetic, NothingWhereTheResultDoesNotFit) {
    EXPECT_EQ(checked_add(kMost - 1, std::int64_t{1}), kMost);
    EXPECT_EQ(checked_add(kMost, std::int64_t{1}), std::nullopt);
    EXPECT_EQ(checked_add(kLeast, std::int64_t{-1}), std::nullopt);
    EXPECT_EQ(checked_subtract(std::size_t{3}, std::size_t{3}), 0U);
    EXPECT_EQ(checked_subtract(std::size_t{3}, std::size_t{4}), std::nullopt);
    EXPECT_EQ(checked_subtract(kLeast, std::int64_t{1}), std::nullopt);
    EXPECT_EQ(checked_multiply(std::int64_t{1} << 31, std::int64_t{1} << 31), std::int64_t{1} << 62);
    EXPECT_EQ(checked_multiply(std::int64_t{1} << 32, std::int64_t{1} << 31), std::nullopt);
    EXPECT_EQ(checked_multiply(kLeast, std::int64_t{-1}), std::nullopt);
    EXPECT_EQ(checked_multiply(std::size_t{1} << 63, std::size_t{2}), std::nullopt);
}

TEST(CheckedArithmetic, CastsKeepTheNumber) {
    EXPECT_EQ(checked_cast<std::size_t>(kMost), std::size_t{1} * kMost);
    EXPECT_EQ(checked_cast<std::size_t>(-1), std::nullopt);
    EXPECT_EQ(checked_cast<std::int64_t>(std::uint64_t{1} << 63), std::nullopt);
    EXPECT_EQ(checked_cast<std::int32_t>(std::int64_t{1} << 31), std::nullopt);
    EXPECT_EQ(checked_cast<std::uint8_t>(255), std::uint8_t{255});
}

TEST(CheckedArithmetic, ElementsOfAShape) {
    using Shape = std::vector<std::int64_t>;
    EXPECT_EQ(checked_numel(Shape{}), 1);
    EXPECT_EQ(checked_numel(Shape{3, 4}), 12);
    EXPECT_EQ(checked_numel(Shape{3, 0, 4}), 0);
    EXPECT_EQ(checked_numel(Shape{kMost}), kMost);
    EXPECT_EQ(checked_numel(Shape{kMost, 1}), kMost);
    for (const auto& shape : {Shape{kMost, 2}, Shape{0, kMost, kMost}, Shape{kMost, kMost, 0}, Shape{-1},
                              Shape{0, -1}, Shape{kLeast, 0}}) {
        EXPECT_EQ(checked_numel(shape), std::nullopt);
    }
}

}  // namespace flashoptim
