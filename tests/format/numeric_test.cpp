// bfloat16, binary16 and the dither against references in double arithmetic and against the written formula.
// If these fail, every stored weight, scale and code is another number than the format says.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "flashoptim/format/dither_tables.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/float16.h"
#include "support.h"

namespace flashoptim::test {
namespace {

/// A binary interchange format of 16 bits, computed in double: nothing of the library's bit arithmetic is
/// used.
struct Narrow {
    int fraction_bits;
    int smallest_exponent;  // of a normal number
    int largest_exponent;

    [[nodiscard]] double value(std::uint32_t bits) const {
        const int exponent_field = static_cast<int>((bits & 0x7fffU) >> static_cast<unsigned>(fraction_bits));
        const auto fraction = bits & ((1U << static_cast<unsigned>(fraction_bits)) - 1U);
        const double sign = (bits & 0x8000U) != 0 ? -1.0 : 1.0;
        const double units = static_cast<double>(fraction);
        if (exponent_field == largest_exponent - smallest_exponent + 2) {
            return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                                 : sign * std::numeric_limits<double>::infinity();
        }
        if (exponent_field == 0) return sign * std::ldexp(units, smallest_exponent - fraction_bits);
        return sign * std::ldexp(units + std::ldexp(1.0, fraction_bits),
                                 exponent_field - 1 + smallest_exponent - fraction_bits);
    }
    /// The nearest value, ties to even: x in units of the last place is exact in double and rint rounds it.
    [[nodiscard]] double nearest(double x) const {
        if (!std::isfinite(x) || x == 0.0) return x;
        const int exponent = std::max(std::ilogb(x), smallest_exponent);
        const double unit = std::ldexp(1.0, exponent - fraction_bits);
        const double rounded = std::rint(x / unit) * unit;
        if (std::fabs(rounded) < std::ldexp(1.0, largest_exponent + 1)) return rounded;
        return std::copysign(std::numeric_limits<double>::infinity(), x);
    }
};
constexpr Narrow kBfloat16{7, -126, 127};
constexpr Narrow kFloat16{10, -14, 15};
/// Prime, so that all fractions and exponents are met.
constexpr std::uint32_t kStride = kExhaustive ? 127 : 40009;

bool same(double a, double b) {
    return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

template <class Type>
void expect_every_pattern_widens_and_returns(const Narrow& narrow) {
    for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
        const auto pattern = static_cast<std::uint16_t>(bits);
        const auto wide = static_cast<float>(Type::from_bits(pattern));
        ASSERT_TRUE(same(static_cast<double>(wide), narrow.value(bits))) << std::hex << bits;
        const auto back = Type(wide);
        if (std::isnan(wide)) {
            ASSERT_TRUE(std::isnan(static_cast<float>(back))) << std::hex << bits;
            ASSERT_EQ(back.bits & 0x8000U, bits & 0x8000U) << std::hex << bits;
        } else {
            ASSERT_EQ(back.bits, bits) << std::hex << bits;
        }
    }
}

template <class Type>
void expect_nearest_even(const Narrow& narrow) {
    std::uint32_t first_bad = 0;
    const auto is_right = [&](std::uint32_t pattern) {
        const float x = float_of(pattern);
        return same(narrow.value(Type(x).bits), narrow.nearest(static_cast<double>(x)));
    };
    EXPECT_EQ(count_violations(kStride, first_bad, is_right), 0U) << "first: " << std::hex << first_bad;
    // Every representable value, every midpoint between two, and the patterns on either side of both.
    for (std::uint32_t bits = 0; bits < 0x7fffU; ++bits) {
        const double here = narrow.value(bits), next = narrow.value(bits + 1);
        if (!std::isfinite(here)) continue;
        const double after = std::isfinite(next) ? next : std::ldexp(1.0, narrow.largest_exponent + 1);
        for (const double centre : {here, here + (after - here) / 2}) {
            const auto at = bits_of(static_cast<float>(centre));  // exact: both have few bits
            for (std::uint32_t near = at > 2 ? at - 2 : 0; near <= at + 2; ++near) {
                ASSERT_TRUE(is_right(near)) << std::hex << near;
                ASSERT_TRUE(is_right(near | 0x80000000U)) << std::hex << near;
            }
        }
    }
}

TEST(Bfloat16, EveryPatternWidensExactlyAndReturns) {
    expect_every_pattern_widens_and_returns<bfloat16>(kBfloat16);
}
TEST(Float16, EveryPatternWidensExactlyAndReturns) {
    expect_every_pattern_widens_and_returns<float16>(kFloat16);
}
TEST(Bfloat16, RoundsToNearestTiesToEven) { expect_nearest_even<bfloat16>(kBfloat16); }
TEST(Float16, RoundsToNearestTiesToEven) { expect_nearest_even<float16>(kFloat16); }

TEST(Bfloat16, SpecialValues) {
    EXPECT_EQ(bfloat16(std::numeric_limits<float>::infinity()).bits, 0x7f80U);
    EXPECT_EQ(bfloat16(-std::numeric_limits<float>::infinity()).bits, 0xff80U);
    EXPECT_EQ(bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80U);  // rounds up to infinity
    EXPECT_EQ(bfloat16(float_of(0x7f7f7fffU)).bits, 0x7f7fU);
    EXPECT_EQ(bfloat16(-0.0F).bits, 0x8000U);
    EXPECT_EQ(bfloat16(float_of(0x00008000U)).bits, 0U);  // half the smallest subnormal: the tie goes to even
    EXPECT_EQ(bfloat16(float_of(0x00008001U)).bits, 1U);
    EXPECT_EQ(bfloat16(float_of(0x7f800001U)).bits,
              0x7fc0U);  // a NaN whose payload is in the lower half stays one
}
TEST(Float16, SpecialValues) {
    EXPECT_EQ(float16(std::numeric_limits<float>::infinity()).bits, 0x7c00U);
    EXPECT_EQ(float16(-std::numeric_limits<float>::infinity()).bits, 0xfc00U);
    EXPECT_EQ(float16(65519.996F).bits, 0x7bffU);
    EXPECT_EQ(float16(65520.0F).bits, 0x7c00U);  // the midpoint to 2^16 rounds up to infinity
    EXPECT_EQ(float16(-0.0F).bits, 0x8000U);
    EXPECT_EQ(float16(0x1p-25F).bits, 0U);  // half the smallest subnormal
    EXPECT_EQ(float16(0x1.000002p-25F).bits, 1U);
    EXPECT_EQ(float16(float_of(0x7f800001U)).bits, 0x7e00U);
}

/// H(salt) = t*0x9E3779B9 + p*0xC13FA9A9 + salt mod 2^32, p = i mod 512, in 64-bit arithmetic.
std::uint32_t written_dither(std::uint64_t t, std::uint64_t index, std::uint64_t salt) {
    constexpr std::uint64_t kModulus = std::uint64_t{1} << 32U;
    return static_cast<std::uint32_t>(
        ((t % kModulus) * 0x9E3779B9U % kModulus + (index % 512) * 0xC13FA9A9U % kModulus + salt) % kModulus);
}

/// Another dither is another format: the same step would no longer give the same bits as before.
TEST(Dither, TablesFollowTheWrittenFormula) {
    for (const std::int64_t t : {std::int64_t{1}, std::int64_t{2}, std::int64_t{3}, std::int64_t{1000},
                                 std::int64_t{123456789}, (std::int64_t{1} << 32) + 7}) {
        DitherTables tables;
        constexpr MomentKind kKinds[] = {MomentKind::kSigned, MomentKind::kSquared, MomentKind::kSigned,
                                         MomentKind::kSquared};
        fill_dither_tables(tables, t, kKinds, 4);
        for (int n = 0; n < DitherTables::kEntries; ++n) {
            const auto step = static_cast<std::uint64_t>(t), index = static_cast<std::uint64_t>(n);
            ASSERT_EQ(tables.weight.entry[n], written_dither(step, index, 0));
            // u from the top 15 bits, kept as 384 + u for a signed moment and 256 + u for a squared one.
            const auto u = [](std::uint32_t h) { return static_cast<float>(h >> 17U) * 0x1p-15F; };
            constexpr std::uint32_t kSalts[] = {0x55555555U, 0xAAAAAAABU, 0x80000000U, 0x2AAAAAABU};
            for (int m = 0; m < 4; ++m) {
                const float base = kKinds[m] == MomentKind::kSquared ? 256.0F : 384.0F;
                ASSERT_EQ(float_of(tables.moment[m].entry[n]) - base,
                          u(written_dither(step, index, kSalts[m])));
            }
        }
    }
}

/// Outside a step u is exactly 1/2, so that rounding is to nearest.
TEST(Dither, NearestIsOneHalf) {
    EXPECT_EQ(float_of(dither_above_256(kNearestDither)), 256.5F);
    EXPECT_EQ(float_of(dither_above_384(kNearestDither)), 384.5F);
}

/// Dithering is unbiased only if u is even over the steps of each element: in 4096 steps every sixteenth of
/// [0, 1) is met 256 times. A golden-ratio sequence is never further than 2 from that (its discrepancy grows
/// with log N).
TEST(Dither, IsEvenOverTheStepsOfEachElement) {
    for (const std::uint32_t salt : {kDitherSaltWeight, dither_salt_of_moment(0), dither_salt_of_moment(1),
                                     dither_salt_of_moment(2), dither_salt_of_moment(3)}) {
        for (std::uint32_t place = 0; place < kDitherPeriod; place += 37) {
            int met[16] = {};
            for (std::uint32_t t = 1; t <= 4096; ++t) ++met[dither_bits(t, place, salt) >> 28U];
            for (const int count : met) EXPECT_NEAR(count, 256, 2);
        }
    }
}

}  // namespace
}  // namespace flashoptim::test
