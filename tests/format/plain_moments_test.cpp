// Moments that the native format stores without scales: slow means in bfloat16 with dither, the last gradient
// in the weight's dtype. If these fail, a slow mean stands still or drifts, or a saved state reads back as
// another one.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../support/comparison.h"
#include "flashoptim/error.h"
#include "flashoptim/format/dither_tables.h"
#include "flashoptim/format/native_states.h"
#include "flashoptim/quantize.h"

namespace flashoptim::test {
namespace {

using L = ScalarLanes;
constexpr DType kWeightDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

Layout layout_of_row(std::int64_t numel) {
    return layout_of({nullptr, DType::kFloat32, {1, numel}, {numel, 1}});
}

std::vector<std::byte> encoded(MomentKind kind, const std::vector<float>& values, DType weight_dtype) {
    const auto layout = layout_of_row(static_cast<std::int64_t>(values.size()));
    const auto plan = plan_moment(kind, MomentStorage::kNative, layout, weight_dtype);
    std::vector<std::byte> codes(plan.codes.bytes());
    quantize_moment(kind, MomentStorage::kNative, layout, values, codes, {}, weight_dtype);
    return codes;
}
std::vector<float> decoded(MomentKind kind, const std::vector<std::byte>& codes, std::size_t numel,
                           DType weight_dtype) {
    std::vector<float> values(numel);
    dequantize_moment(kind, MomentStorage::kNative, layout_of_row(static_cast<std::int64_t>(numel)), codes,
                      {}, values, weight_dtype);
    return values;
}

TEST(PlainMoments, TheirPlanHasNoScales) {
    const auto layout = layout_of_row(70);
    for (const auto dtype : kWeightDTypes) {
        const auto slow = plan_moment(MomentKind::kSlow, MomentStorage::kNative, layout, dtype);
        EXPECT_EQ(slow.codes, (BufferPlan{DType::kBFloat16, 70}));
        EXPECT_EQ(slow.scales.count, 0);
        const auto gradient = plan_moment(MomentKind::kGradient, MomentStorage::kNative, layout, dtype);
        EXPECT_EQ(gradient.codes, (BufferPlan{dtype, 70}));
        EXPECT_EQ(gradient.scales.count, 0);
    }
    for (const auto kind : {MomentKind::kSlow, MomentKind::kGradient}) {
        const auto plain = plan_moment(kind, MomentStorage::kFloat32, layout, DType::kBFloat16);
        EXPECT_EQ(plain.codes, (BufferPlan{DType::kFloat32, 70}));
    }
}

/// What a type holds comes back exactly; anything else is at most half a unit away.
TEST(PlainMoments, ConversionsRoundToNearest) {
    std::vector<float> values = {0.0F, -0.0F, 1.0F, -1.5F, 1.00390625F, -3.14159274F, 0x1p-20F, 1000.7F};
    for (int n = 1; n < 400; ++n)
        values.push_back(std::sin(static_cast<float>(n)) * std::ldexp(1.0F, n % 12));
    for (const auto kind : {MomentKind::kSlow, MomentKind::kGradient}) {
        for (const auto dtype : kWeightDTypes) {
            const auto stored = kind == MomentKind::kSlow ? DType::kBFloat16 : dtype;
            const float unit = stored == DType::kBFloat16  ? 0x1p-8F
                               : stored == DType::kFloat16 ? 0x1p-11F
                                                           : 0.0F;
            const auto codes = encoded(kind, values, dtype);
            const auto once = decoded(kind, codes, values.size(), dtype);
            for (std::size_t n = 0; n < values.size(); ++n) {
                const float least = stored == DType::kFloat16 ? 0x1p-25F : 0.0F;
                EXPECT_LE(std::fabs(once[n] - values[n]), std::fabs(values[n]) * unit + least) << values[n];
                EXPECT_EQ(std::signbit(once[n]), std::signbit(values[n])) << values[n];
            }
            EXPECT_EQ(encoded(kind, once, dtype), codes);
        }
    }
}

/// No dither changes a number that the type holds: an element that keeps its moment keeps its code.
TEST(PlainMoments, DitherKeepsWhatBfloat16Holds) {
    using Slow = NativeMoments::Slow;
    for (std::uint32_t pattern = 0; pattern < 0x10000U; ++pattern) {
        if ((pattern & 0x7f80U) == 0x7f80U) continue;
        const float value = Slow::unit<L>(pattern);
        for (const std::uint32_t dither : {0U, 1U, 0x7fffU, 0x8000U, 0xffffU}) {
            ASSERT_EQ(Slow::code<L>(value, 0.0F, dither), pattern);
        }
    }
}

/// Over all dither the mean of the codes is the value: a mean that moves by less than a unit still moves.
TEST(PlainMoments, DitherHasNoBias) {
    using Slow = NativeMoments::Slow;
    for (const float value : {1.001F, -0.7123F, 3.3e-5F, 12345.67F}) {
        double sum = 0.0;
        for (std::uint32_t dither = 0; dither < 0x10000U; ++dither) {
            sum += static_cast<double>(Slow::unit<L>(Slow::code<L>(value, 0.0F, dither)));
        }
        const double mean = sum / 65536.0, unit = std::fabs(static_cast<double>(value)) * 0x1p-7;
        EXPECT_NEAR(mean, static_cast<double>(value), unit * 0x1p-16);
    }
}

/// A float16 gradient beyond 65504 must not become infinite: the next difference would be, too.
TEST(PlainMoments, Float16GradientsSaturate) {
    const auto codes = encoded(MomentKind::kGradient, {1e6F, -1e6F, 65519.0F, 65520.0F}, DType::kFloat16);
    EXPECT_EQ(decoded(MomentKind::kGradient, codes, 4, DType::kFloat16),
              (std::vector<float>{65504.0F, -65504.0F, 65504.0F, 65504.0F}));
}

TEST(PlainMoments, DamagedOnesAreRefused) {
    const auto layout = layout_of_row(3);
    for (const auto kind : {MomentKind::kSlow, MomentKind::kGradient}) {
        for (const auto dtype : kWeightDTypes) {
            StoragePlan plan;
            plan.weight_dtype = dtype;
            plan.moments = MomentStorage::kNative;
            auto codes = encoded(kind, {1.0F, 2.0F, 3.0F}, dtype);
            check_moment(kind, plan, layout, codes, {}, "slow");
            EXPECT_THROW(check_moment(kind, plan, layout, std::span(codes).first(2), {}, "slow"),
                         InvalidArgument);
            std::memset(codes.data(), 0xff, codes.size() / 3);  // a NaN in each of the types
            EXPECT_THROW(check_moment(kind, plan, layout, codes, {}, "slow"), FormatError);
            EXPECT_THROW(encoded(kind, {std::numeric_limits<float>::infinity()}, dtype), InvalidArgument);
        }
    }
}

/// A kernel takes a kept gradient for one that was good; it finds the next bad gradient by that.
TEST(PlainMoments, GradientsThatNoStepKeepsAreRefused) {
    const auto layout = layout_of_row(1);
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16}) {
        StoragePlan plan;
        plan.weight_dtype = dtype;
        plan.moments = MomentStorage::kNative;
        const auto largest = encoded(MomentKind::kGradient, {-0x1p48F}, dtype);
        check_moment(MomentKind::kGradient, plan, layout, largest, {}, "gradient");
        EXPECT_THROW(encoded(MomentKind::kGradient, {0x1p49F}, dtype), InvalidArgument);
        const auto larger = encoded(MomentKind::kSlow, {0x1p49F}, DType::kBFloat16);
        if (dtype != DType::kBFloat16) continue;
        EXPECT_THROW(check_moment(MomentKind::kGradient, plan, layout, larger, {}, "gradient"), FormatError);
    }
}

/// The encoder adds 16 bits below the code.
TEST(PlainMoments, DitherOfTheTablesIsTheUpperHalf) {
    for (const auto kind : {MomentKind::kSlow, MomentKind::kGradient}) {
        EXPECT_EQ(dither_of_code(kind, 0x12345678U), 0x1234U);
    }
}

}  // namespace
}  // namespace flashoptim::test
