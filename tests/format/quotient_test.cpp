// Quotients without a division are those of the division, bit for bit.
#include "flashoptim/numeric/quotient.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>

namespace flashoptim::test {
namespace {

/// The scalar lanes on the way of lanes with a fast fma.
struct CorrectingLanes : ScalarLanes {
    static constexpr bool kHasFastFma = true;
};
using L = CorrectingLanes;

float random_float(std::mt19937& random, int smallest_exponent, int largest_exponent) {
    std::uniform_int_distribution<std::uint32_t> exponents(
        static_cast<std::uint32_t>(127 + smallest_exponent),
        static_cast<std::uint32_t>(127 + largest_exponent));
    // Fractions of few and of many ones are the awkward ones.
    auto fraction = static_cast<std::uint32_t>(random());
    if (random() % 4 == 0) fraction = ~0U << (random() % 24);
    if (random() % 8 == 0) fraction = ~0U - static_cast<std::uint32_t>(random() % 8);
    return ScalarLanes::from_bits((exponents(random) << 23U) | (fraction & 0x7fffffU));
}

TEST(Quotient, OfEveryIntegerThatTheFormatsDivide) {
    for (const float divisor : {127.0F, 255.0F, 32767.0F}) {
        for (int n = -32768; n <= 32767; ++n) {
            const auto x = static_cast<float>(n);
            ASSERT_EQ(L::bits(integer_quotient<L>(x, divisor)), L::bits(x / divisor))
                << n << " / " << divisor;
        }
    }
}

TEST(Quotient, ByADivisorOfTheStepIsTheDivision) {
    std::mt19937 random(1);
    for (int n = 0; n < 4'000'000; ++n) {
        const float d = random_float(random, -32, 32);
        float x = random_float(random, -120, 120);
        if (random() % 2 == 0) x = -x;
        ASSERT_EQ(L::bits(quotient<L>(x, divisor_of(d))), L::bits(x / d)) << x << " / " << d;
    }
    for (int n = 0; n < 1'000'000; ++n) {
        const float d = random_float(random, -30, 29), x = random_float(random, -100, 89);
        if (x / d < 0x1p-120F) continue;
        ASSERT_EQ(L::bits(quotient<L, true>(x, divisor_of(d))), L::bits(x / d)) << x << " / " << d;
    }
    const float infinity = ScalarLanes::from_bits(kInfinityBits);
    for (const float d : {1.0F, 0.1F, 0x1.fffffep-1F, 0x1p-41F, 1e30F, 0.0F, infinity}) {
        for (const float x : {0.0F, -0.0F, 1e-40F, -1e-40F, 1e38F, infinity, -infinity}) {
            if (!(x / d == x / d)) continue;  // a NaN
            EXPECT_EQ(L::bits(quotient<L>(x, divisor_of(d))), L::bits(x / d)) << x << " / " << d;
        }
    }
}

/// Moments over their group's largest magnitude: exact, or far below what could make a code.
TEST(Quotient, OfAMomentByItsGroupsLargest) {
    std::mt19937 random(2);
    for (int n = 0; n < 4'000'000; ++n) {
        const float a = random_float(random, -39, 88);
        float x = random_float(random, -126, 88);
        if (x > a) continue;
        const float ours = corrected_quotient<L>(x, a, 1.0F / a), theirs = x / a;
        if (x >= kSmallestDividend && theirs >= 0x1p-120F) {
            ASSERT_EQ(L::bits(ours), L::bits(theirs)) << x << " / " << a;
        } else {
            ASSERT_LT(ours, 0x1p-40F) << x << " / " << a;
        }
    }
}

}  // namespace
}  // namespace flashoptim::test
