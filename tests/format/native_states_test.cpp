// The native moment codes: the square law, every code under every scale, the sticky scales, flushing to zero.
// If these fail, moments drift although no gradient moved them, or a saved state reads back as another one.
#include "flashoptim/format/native_states.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "../support/comparison.h"
#include "flashoptim/optimizer.h"
#include "flashoptim/quantize.h"
#include "support.h"

namespace flashoptim::test {
namespace {

/// twice(c) = F(2 B(c) - 0x3F800000), the exact inverse of half; twice(0) = 0.
template <class L>
FLASHOPTIM_INLINE typename L::Float twice_law(typename L::Float c) {
    const auto bits = L::bits(c);
    return L::from_bits(
        L::select_bits(L::equal_bits(bits, L::broadcast_bits(0U)), bits, (bits << 1U) - 0x3F800000U));
}

using L = ScalarLanes;
using M = NativeMoments;

// ------------------------------------------------------------------------------------------------ the law

/// Every float in the range of codes and beyond comes back exactly; the other way the last bit
/// is lost, as 2 B(c) is even.
TEST(SquareLaw, TwiceAndHalfAreInverses) {
    constexpr std::uint32_t kStride = kExhaustive ? 13 : 4099;
    for (std::uint32_t pattern = 0x1FC00000U; pattern < 0x5F400000U; pattern += kStride) {
        const float c = float_of(pattern);
        ASSERT_EQ(bits_of(half_law<L>(twice_law<L>(c))), pattern);
    }
    for (std::uint32_t pattern = 0x00800000U; pattern < 0x7F800000U; pattern += kStride) {
        ASSERT_EQ(bits_of(twice_law<L>(half_law<L>(float_of(pattern)))), pattern & ~1U);
    }
    EXPECT_EQ(twice_law<L>(0.0F), 0.0F);
}

/// half is the chord through the square root at powers of 4 with a knot at 2 * 4^k, where 1.5
/// stands for sqrt(2): at most 1.5 / sqrt(2) - 1 = 6.07 % above it, never below (the fp32
/// rounding of half itself is 2^-24).
TEST(SquareLaw, HalfIsWithinSixPercentOfTheRoot) {
    for (int k = -60; k <= 60; ++k) EXPECT_EQ(half_law<L>(std::ldexp(1.0F, 2 * k)), std::ldexp(1.0F, k));
    for (std::uint32_t pattern = 0x00800000U; pattern < 0x7F800000U; pattern += 40009) {
        const double x = static_cast<double>(float_of(pattern));
        const double ratio = static_cast<double>(half_law<L>(float_of(pattern))) / std::sqrt(x);
        ASSERT_GE(ratio, 1.0 - 0x1p-23);
        ASSERT_LE(ratio, 1.5 / std::sqrt(2.0) + 0x1p-23);
    }
}

/// What a code stands for, in double: twice(c) for an integer c is exact there.
double value_of_code(int code) {
    const int size = std::abs(code);
    if (size == 0) return 0.0;
    const int exponent = std::ilogb(static_cast<double>(size));
    const double fraction = static_cast<double>(size) / std::ldexp(1.0, exponent) - 1.0;  // c = 2^e (1 + f)
    const double value = fraction < 0.5 ? std::ldexp(1.0 + 2.0 * fraction, 2 * exponent)
                                        : std::ldexp(2.0 * fraction, 2 * exponent + 1);
    return code < 0 ? -value : value;
}

/// decode m: sign(q) twice(|q|) s / 16384; decode v: (twice(c) s / 65536)^2; exact but for v's one rounding.
TEST(SquareLaw, DecodesAsWrittenForEveryCode) {
    const auto layout = layout_of({nullptr, DType::kFloat32, {32}, {}});
    for (const auto scale_pattern :
         std::to_array<std::uint16_t>({0x3f80, 0x3f8d, 0x0001, 0x3a12, 0x7f7f, 0x0080, 0x4233})) {
        const double scale = static_cast<double>(static_cast<float>(bfloat16::from_bits(scale_pattern)));
        const std::array<std::uint16_t, 1> scales = {scale_pattern};
        for (int first = -127; first <= 255; first += 32) {
            std::array<std::byte, 32> codes{};
            std::array<float, 32> m{}, v{};
            for (int n = 0; n < 32; ++n)
                codes[static_cast<std::size_t>(n)] = static_cast<std::byte>(first + n);
            dequantize_moment(MomentKind::kSigned, MomentStorage::kNative, layout, codes, scales, m);
            dequantize_moment(MomentKind::kSquared, MomentStorage::kNative, layout, codes, scales, v);
            for (std::size_t n = 0; n < 32; ++n) {
                const int signed_code = static_cast<std::int8_t>(codes[n]), code = static_cast<int>(codes[n]);
                ASSERT_EQ(m[n], static_cast<float>(value_of_code(signed_code) * scale / 16384.0))
                    << signed_code;
                const double root = value_of_code(code) * scale / 65536.0;
                ASSERT_EQ(v[n], static_cast<float>(root * root)) << code << " scale " << scale;
            }
        }
    }
}

/// Larger codes stand for larger values, or an encoder would not be monotone.
TEST(SquareLaw, IsMonotone) {
    for (int code = -127; code < 127; ++code) {
        EXPECT_LT(M::Signed::unit<L>(static_cast<std::uint32_t>(code)),
                  M::Signed::unit<L>(static_cast<std::uint32_t>(code + 1)));
    }
    for (std::uint32_t code = 0; code < 255; ++code)
        EXPECT_LT(M::Squared::unit<L>(code), M::Squared::unit<L>(code + 1));
}

// -------------------------------------------------------------------------------------------- the encoder

/// q = floor(y + u), the sum rounded once to a grid of 2^-15; y = min(z, half(z)) for m and half(z) for v.
int written_code(double y, double u) {
    return static_cast<int>(std::floor(std::rint((y + u) * 0x1p15) * 0x1p-15));
}

TEST(NativeEncoder, FollowsTheWrittenDefinition) {
    Random random(3);
    for (int n = 0; n < 1'000'000; ++n) {
        const auto h = static_cast<std::uint32_t>(random.next());
        const double u = static_cast<double>(h >> 17U) * 0x1p-15;
        // |m| / s and r / s up to 0.98, over ten octaves.
        const auto ratio = static_cast<float>(0.98 * std::exp2(-10.0 * random.uniform()));
        const float z = ratio * 16384.0F;
        const auto y = static_cast<double>(std::min(z, half_law<L>(z)));
        for (const float sign : {1.0F, -1.0F}) {
            const auto code =
                static_cast<std::int8_t>(M::Signed::code<L>(sign * ratio, 16384.0F, dither_above_384(h)));
            ASSERT_EQ(code, written_code(static_cast<double>(sign) * y, u)) << ratio << " u " << u;
        }
        const auto code = static_cast<int>(M::Squared::code<L>(ratio, 2.0F, dither_above_256(h)));
        ASSERT_EQ(code, written_code(static_cast<double>(half_law<L>(ratio * 65536.0F)), u))
            << ratio << " u " << u;
    }
}

/// Above code 2 the cells between two codes are straight (the law's knots 2^k and 1.5 * 2^k are integers
/// there), and m's first cell is straight because of the min: the mean over all u is the value itself, but
/// for the grid of 2^-15 in y.
TEST(NativeEncoder, DitherIsUnbiasedInValue) {
    Random random(4);
    for (int n = 0; n < 60; ++n) {
        const bool first_cell = n % 6 == 5;
        const auto z =
            static_cast<float>(first_cell ? random.uniform() : 4.0 * std::exp2(11.9 * random.uniform()));
        const auto root = z * 0x1p-15F;  // 2 r / s of z = r / s * 65536
        double first = 0.0, second = 0.0;
        for (std::uint32_t u = 0; u < 32768; ++u) {
            first += value_of_code(
                static_cast<std::int8_t>(M::Signed::code<L>(z, 1.0F, dither_above_384(u << 17U))));
            second +=
                value_of_code(static_cast<int>(M::Squared::code<L>(root, 1.0F, dither_above_256(u << 17U))));
        }
        // One grid step of y times the slope of twice, at most twice'(y) = 4 y, y <= 1.07 sqrt(z).
        const double slope = 4.3 * std::sqrt(static_cast<double>(z)) + 1.0;
        EXPECT_NEAR(first / 32768, static_cast<double>(z), 0x1p-15 * slope);
        if (first_cell) continue;
        EXPECT_NEAR(second / 32768, static_cast<double>(z), 0x1p-15 * slope);
    }
}

struct Failures {
    std::uint64_t count = 0;
    std::uint32_t smallest_scale = 0xffffU, largest_scale = 0;
    void add(std::uint32_t scale) {
        ++count;
        smallest_scale = std::min(smallest_scale, scale);
        largest_scale = std::max(largest_scale, scale);
    }
};

/// Decodes, carries and encodes every code with u = 0 under every bfloat16 scale in a range.
template <bool kFirst>
void expect_codes_to_return(double measure, float first_scale, float last_scale) {
    Failures failures;
    const int least = kFirst ? -127 : 0, largest = kFirst ? 127 : 254;
    const auto k = kFirst ? M::Signed::scalars(1.0, 1.0, measure) : M::Squared::scalars(1.0, 1.0, measure);
    for (std::uint32_t pattern = M::scale_bits(first_scale); pattern <= M::scale_bits(last_scale);
         ++pattern) {
        const float scale = M::scale_to_float(static_cast<std::uint16_t>(pattern));
        const float factor = scale * (kFirst ? M::Signed::kUnit : M::Squared::kUnit);
        const float encode = k.encode / scale;
        for (int code = least; code <= largest; ++code) {
            const auto bits = static_cast<std::uint32_t>(code);
            if constexpr (kFirst) {
                const float carried = (M::Signed::unit<L>(bits) * factor) / k.measure;
                const auto again = M::Signed::code<L>(carried, encode, dither_above_384(0));
                if (static_cast<std::int8_t>(again) != code) failures.add(pattern);
            } else {
                const float carried = (M::Squared::unit<L>(bits) * factor) / k.measure;
                const auto again = M::Squared::code<L>(carried, encode, dither_above_256(0));
                if (static_cast<int>(again) != code) failures.add(pattern);
            }
        }
    }
    EXPECT_EQ(failures.count, 0U) << "measure " << measure << ", scales " << std::hex
                                  << failures.smallest_scale << " to " << failures.largest_scale;
}

/// A code that is decoded and encoded again with u = 0 is the same code: otherwise quiet moments creep. For
/// the moment itself (quantising, SGD, Lion) this holds for every scale whose factors are finite normal
/// floats: 16384 / s ends at 2^-113, far below the 2^-100 where first moments are flushed.
TEST(NativeEncoder, EveryCodeReturnsForEveryScale) {
    constexpr float kLargestScale = 0x1.fep127F;
    expect_codes_to_return<true>(1.0, 0x1p-113F, kLargestScale);
    expect_codes_to_return<false>(1.0, 0x1p-126F, kLargestScale);
}

/// The same for what Adam carries, m / (1 - b1) and sqrt(v / (1 - b2)), with constants that are rounded once
/// more: the sum on its grid of 2^-15 absorbs it for every scale that the format writes. Those begin at 1.1
/// tiny; v and its root are fp32 numbers, so r ends at 2^64, and the carried first moment is one too.
TEST(NativeEncoder, EveryCodeReturnsInCarriedUnits) {
    for (const double beta : {0.3, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999}) {
        expect_codes_to_return<true>(1.0 - beta, 0x1p-100F, 0x1p113F);
        expect_codes_to_return<false>(1.0 - beta, 0x1p-60F, 0x1p65F);
    }
}

/// The largest value that a scale admits (0.98 s) with the largest u stays inside the codes: -128
/// and 255 are never written.
TEST(NativeEncoder, NeverWritesTheForbiddenCodes) {
    for (const std::uint32_t h : {0U, 0x80000000U, 0xffffffffU}) {
        for (float ratio = 0.0F; ratio <= 0.98F; ratio += 0x1p-12F) {
            for (const float sign : {1.0F, -1.0F}) {
                const auto code =
                    static_cast<std::int8_t>(M::Signed::code<L>(sign * ratio, 16384.0F, dither_above_384(h)));
                ASSERT_GE(code, -127);
            }
            ASSERT_LE(M::Squared::code<L>(ratio, 2.0F, dither_above_256(h)), 254U);
        }
    }
}

// --------------------------------------------------------------------------------------------- the scales

/// 0.7 s <= a <= 0.98 s: s stays. Otherwise zero below tiny, and bf16 rounded up of 1.1 a above.
TEST(NativeScale, IsSticky) {
    Random random(5);
    for (int n = 0; n < 200'000; ++n) {
        const float old_scale =
            static_cast<float>(bfloat16(static_cast<float>(std::exp2(random.uniform() * 100 - 50))));
        const double ratio = std::exp2(random.uniform() * 4 - 2);
        const auto largest = static_cast<float>(static_cast<double>(old_scale) * ratio);
        // Products with 0.7f and 0.98f are rounded: values within 1e-6 of the limits may fall on either side.
        if (std::fabs(ratio - 0.7) < 1e-6 || std::fabs(ratio - 0.98) < 1e-6) continue;
        const float scale = M::next_scale<L>(largest, old_scale, M::Signed::kTiny);
        if (ratio > 0.7 && ratio < 0.98) {
            ASSERT_EQ(scale, old_scale) << ratio;
        } else {
            ASSERT_EQ(bits_of(scale) & 0xffffU, 0U);
            const float wanted = largest * 1.1F;
            ASSERT_GE(scale, wanted);
            ASSERT_LT(float_of(bits_of(scale) - 0x10000U),
                      wanted);  // the next bfloat16 below would be too small
            // The new scale admits the value and would itself stay.
            ASSERT_LE(largest, scale * 0.98F);
            ASSERT_GE(largest, scale * 0.7F);
        }
    }
}

TEST(NativeScale, IsZeroBelowTiny) {
    EXPECT_EQ(M::next_scale<L>(0.0F, 1.0F, M::Signed::kTiny), 0.0F);
    EXPECT_EQ(M::next_scale<L>(0.0F, 0.0F, M::Signed::kTiny), 0.0F);
    EXPECT_EQ(M::next_scale<L>(0x1.fffffep-101F, 1.0F, 0x1p-100F), 0.0F);
    EXPECT_GT(M::next_scale<L>(0x1p-100F, 1.0F, 0x1p-100F), 0.0F);
    EXPECT_EQ(M::Signed::kTiny, 0x1p-100F);
    EXPECT_EQ(M::Squared::kTiny, 0x1p-60F);
}

/// A NaN among the values never reaches the scale.
TEST(NativeScale, IgnoresNan) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(L::max_ignoring_nan(0.25F, nan), 0.25F);
}

// ------------------------------------------------------------------------------------------ inside a step

OptimizerOptions quantize_all(Backend backend = Backend::kAutomatic) {
    OptimizerOptions options;
    options.storage.min_quantized_numel = 0;
    options.storage.min_quantized_numel_1d = 0;
    options.backend = backend;
    return options;
}

std::vector<std::byte> bytes_of_state(Optimizer& optimizer, Optimizer::ParameterId p) {
    std::vector<std::byte> all;
    for (const auto& tensor : optimizer.state(p))
        all.insert(all.end(), tensor.bytes.begin(), tensor.bytes.end());
    return all;
}

/// Embedding rows that are never touched must stay exactly as they are: g = m = v = 0 leaves every bit.
TEST(NativeStates, ZeroIsExact) {
    for (const auto backend : available_backends()) {
        AdamW optimizer({.learning_rate = 1e-2, .weight_decay = 0.0}, quantize_all(backend));
        std::vector<std::uint16_t> weights(1000);
        Random random(6);
        for (auto& w : weights) w = bfloat16(static_cast<float>(random.normal())).bits;
        const auto before = weights;
        std::vector<float> gradients(weights.size(), 0.0F);
        const auto p = optimizer.add_parameter({weights.data(), DType::kBFloat16, {1000}, {}});
        std::vector<float> masters(weights.size());
        for (std::size_t n = 0; n < masters.size(); ++n) masters[n] = static_cast<float>(random.normal());
        optimizer.set_master(p, masters);
        const auto weights_before = weights;
        const auto state_before = bytes_of_state(optimizer, p);
        optimizer.set_gradient(p, {gradients.data(), DType::kFloat32, {1000}, {}});
        for (int t = 0; t < 50; ++t) optimizer.step();
        EXPECT_EQ(weights, weights_before);
        EXPECT_EQ(bytes_of_state(optimizer, p), state_before);
    }
}

/// Without gradients |m| falls by b1 and r by sqrt(b2) in each step: below 2^-100 after 658 steps (.9) and r
/// below 2^-60 after 1,622 (.95) from 1. What is left is zero, not a residue of codes that dither for ever.
TEST(NativeStates, AQuietGroupDecaysAndFlushesToZero) {
    AdamW optimizer({.learning_rate = 0.0, .beta1 = 0.9, .beta2 = 0.95}, quantize_all());
    std::vector<std::uint16_t> weights(64, 0x3f80);
    std::vector<float> gradients(64);
    Random random(7);
    for (auto& g : gradients) g = static_cast<float>(random.normal());
    const auto p = optimizer.add_parameter({weights.data(), DType::kBFloat16, {64}, {}});
    optimizer.set_gradient(p, {gradients.data(), DType::kFloat32, {64}, {}});
    optimizer.step();
    std::fill(gradients.begin(), gradients.end(), 0.0F);
    const double m_after_one = largest_magnitude(optimizer.moment(p, 0));
    for (int t = 2; t <= 100; ++t) optimizer.step();
    // On its way down the decay is the exact one on average; each rescaling and
    // dither moves it by a part of 1 %.
    EXPECT_NEAR(std::log(largest_magnitude(optimizer.moment(p, 0)) / m_after_one) / (99 * std::log(0.9)), 1.0,
                0.03);
    for (int t = 101; t <= 800; ++t) optimizer.step();
    EXPECT_EQ(largest_magnitude(optimizer.moment(p, 0)), 0.0);
    EXPECT_GT(largest_magnitude(optimizer.moment(p, 1)), 0.0);
    for (int t = 801; t <= 1900; ++t) optimizer.step();
    for (const auto& tensor : optimizer.state(p)) {
        for (const auto byte : tensor.bytes) ASSERT_EQ(byte, std::byte{0}) << tensor.name;
    }
    // And it wakes again.
    std::fill(gradients.begin(), gradients.end(), 1.0F);
    optimizer.step();
    EXPECT_NEAR(largest_magnitude(optimizer.moment(p, 0)), 0.1, 0.002);
}

StoragePlan plan_of(MomentStorage moments, bool paper_arithmetic) {
    StoragePlan plan;
    plan.moments = moments;
    plan.paper_arithmetic = paper_arithmetic;
    return plan;
}

Layout layout_of_vector(std::int64_t numel) {
    return layout_of(TensorView{nullptr, DType::kFloat32, {numel}});
}

/// Codes beside a scale of 0 would be read as 0, and as something else once the scale changes:
/// wherever one stands it is refused.
TEST(NativeStates, CheckRefusesCodesOfAnEmptyGroup) {
    const auto native = plan_of(MomentStorage::kNative, false);
    constexpr std::int64_t kRows = 3, kRowLength = 70;  // groups of 32, 32 and 6 in each row
    const auto layout = layout_of(TensorView{nullptr, DType::kFloat32, {kRows, kRowLength}});
    std::vector<std::byte> codes(kRows * kRowLength);
    std::vector<std::uint16_t> scales(kRows * 3);
    for (const auto moment : {MomentKind::kSigned, MomentKind::kSquared}) {
        check_moment(moment, native, layout, codes, scales, "layer");
        for (std::size_t element = 0; element < codes.size(); ++element) {
            const auto row = element / kRowLength;
            const auto group = row * 3 + element % kRowLength / 32;
            codes[element] = std::byte{1};
            EXPECT_THROW(check_moment(moment, native, layout, codes, scales, "layer"), FormatError)
                << element;
            scales[group] = 0x3f80;
            check_moment(moment, native, layout, codes, scales, "layer");
            scales[group] = 0;
            codes[element] = std::byte{0};
        }
    }
}

/// A state of a file whose codes or scales the format never writes is refused by name;
/// what it writes is accepted.
TEST(NativeStates, CheckRefusesWhatIsNeverWritten) {
    std::array<std::byte, 32> codes{};
    std::array<std::uint16_t, 1> scales = {0x3f80};
    const auto native = plan_of(MomentStorage::kNative, false);
    const auto layout = layout_of_vector(32);
    check_moment(MomentKind::kSigned, native, layout, codes, scales, "layer.m");
    check_moment(MomentKind::kSquared, native, layout, codes, scales, "layer.v");
    codes[7] = std::byte{0x80};
    EXPECT_THROW(check_moment(MomentKind::kSigned, native, layout, codes, scales, "layer.m"), FormatError);
    check_moment(MomentKind::kSquared, native, layout, codes, scales, "layer.v");
    codes[7] = std::byte{0xff};
    EXPECT_THROW(check_moment(MomentKind::kSquared, native, layout, codes, scales, "layer.v"), FormatError);
    check_moment(MomentKind::kSigned, native, layout, codes, scales, "layer.m");
    for (const auto bad : std::to_array<std::uint16_t>({0x7f80, 0x7fc0, 0xbf80, 0x8000, 0xff80})) {
        scales[0] = bad;
        try {
            check_moment(MomentKind::kSigned, native, layout, codes, scales, "layer.m");
            ADD_FAILURE() << "scale " << std::hex << bad << " was accepted";
        } catch (const FormatError& error) {
            EXPECT_NE(std::string(error.what()).find("layer.m"), std::string::npos);
        }
    }
    codes[7] = std::byte{0};
    // The smallest scales that are written, and the next smaller bfloat16.
    for (const auto& [moment, smallest] :
         {std::pair{MomentKind::kSigned, 0x0d80}, {MomentKind::kSquared, 0x2180}}) {
        scales[0] = static_cast<std::uint16_t>(smallest);
        check_moment(moment, native, layout, codes, scales, "layer");
        scales[0] = static_cast<std::uint16_t>(smallest - 1);
        EXPECT_THROW(check_moment(moment, native, layout, codes, scales, "layer"), FormatError);
        scales[0] = 0;
        check_moment(moment, native, layout, codes, scales, "layer");
    }
}

/// fp32 moments of the native format are finite; those of the paper's may be what an
/// unchecked gradient made of them.
TEST(NativeStates, CheckOfOtherStoragesFollowsTheirFormat) {
    std::array<float, 4> values = {0.0F, 1.0F, 2.0F, 3.0F};
    const auto bytes = std::as_bytes(std::span(values));
    const auto native = plan_of(MomentStorage::kFloat32, false),
               paper = plan_of(MomentStorage::kFloat32, true);
    const auto is_refused = [&](MomentKind moment, const StoragePlan& plan, std::span<const std::byte> codes,
                                std::span<const std::uint16_t> scales) {
        const auto layout = layout_of_vector(plan.moments == MomentStorage::kFloat32 ? 4 : 32);
        try {
            check_moment(moment, plan, layout, codes, scales, "layer");
        } catch (const FormatError&) {
            return true;
        }
        return false;
    };
    for (const float special : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
        values[2] = special;
        for (const auto moment : {MomentKind::kSigned, MomentKind::kSquared}) {
            EXPECT_TRUE(is_refused(moment, native, bytes, {}));
            EXPECT_FALSE(is_refused(moment, paper, bytes, {}));
        }
    }
    values[2] = -1.0F;
    EXPECT_TRUE(is_refused(MomentKind::kSquared, native, bytes, {}));
    EXPECT_TRUE(is_refused(MomentKind::kSquared, paper, bytes, {}));

    const auto codes_of_paper = plan_of(MomentStorage::kPaper, true);
    const std::array<std::byte, 32> codes{};
    for (const auto& [scale, refused] :
         {std::pair{0x7c00, false}, {0x7bff, false}, {0x7e00, true}, {0xfc00, true}, {0x8000, true}}) {
        const std::array scales = {static_cast<std::uint16_t>(scale)};
        for (const auto moment : {MomentKind::kSigned, MomentKind::kSquared})
            EXPECT_EQ(is_refused(moment, codes_of_paper, codes, scales), refused) << std::hex << scale;
    }
}

}  // namespace
}  // namespace flashoptim::test
