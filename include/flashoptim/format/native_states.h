// How the native format stores a moment: 8-bit codes of a piecewise-linear square law, with one sticky
// bfloat16 scale for each group. Uncompressed fp32 moments are here too: they follow the same rules with
// another storage.
//
// Every moment format offers
//     FirstCode, SecondCode             types in memory
//     kGrouped                          whether groups of 32 share a scale
//     kCarriesScaled                    whether it returns m/(1-beta1) and v/(1-beta2), so that the gradient
//                                       is added to a moment without a multiplication
//     OldFirst<L>, OldSecond<L>         an old moment as the rules see it (format/moments.h)
//     first_scalars, second_scalars     what a step needs of the rule's constants
// and a grouped one
//     first_unit<L>, second_unit<L>     what a code stands for, but for the group's factor
//     first_scale<L>, second_scale<L>   the new scale of a group and the factor its codes are made with
//     first_code<L>, second_code<L>     codes of new moments
// and for units of vectors (step/lanes/)
//     first_in_unit, second_in_unit     units of vector j
//     first_sum, second_sum             codes of new moments in the bits kCodeShift and above, flipped by kFirstFlip
//     kDivides                          whether these take the reciprocal of the factor beside it
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/format/moments.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/dither.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// half(x) = F((B(x) >> 1) + 0x1FC00000): the square root at powers of 4, within 6 % of it elsewhere. half(0)
/// is 2^-63.5.
template <class L>
FLASHOPTIM_INLINE typename L::Float half_law(typename L::Float x) {
    return L::from_bits((L::bits(x) >> 1U) + 0x1FC00000U);
}
/// The square-law codes.
struct NativeMoments {
    using FirstCode = std::int8_t;
    using SecondCode = std::uint8_t;
    static constexpr bool kGrouped = true;
    static constexpr bool kCarriesScaled = true;
    static constexpr bool kDivides = false;

    static constexpr double kFirstUnits = 16384.0;  // z of the first moment = |m| / s * 16384
    static constexpr float kFirstUnit = 0x1p-13F;   // m = first_unit * s * this
    static constexpr float kSecondUnit = 0.5F;      // r = second_unit * s * this
    static constexpr int kCodeShift = 15;
    static constexpr std::uint32_t kFirstFlip = 0x80U;
    static constexpr float kTinyFirst = 0x1p-100F;  // a group whose largest |m| is below is stored as zero
    static constexpr float kTinySecond = 0x1p-60F;  // the same for r
    static constexpr float kKeepLow = 0.7F,
                           kKeepHigh = 0.98F;  // a scale stays while the largest is in between
    static constexpr float kHeadroom = 1.1F;   // a new scale is the largest times this, rounded up

    template <class L>
    using OldFirst = OldMoment<L>;
    template <class L>
    using OldSecond = OldRootMoment<L>;

    /// sign(q) * twice(|q|) / 2; the first moment is this times s / 8192. `code` is sign-extended.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float first_unit(typename L::UInt code) {
        // The factor 2^-64 puts the exponent where doubling the bits needs no subtraction, so that zero stays
        // zero.
        const auto bits = L::bits(L::to_float(code) * L::broadcast(0x1p-64F));
        return L::from_bits(L::merge_bits(kSignBit, bits, bits << 1U));
    }
    /// twice(c) * 2^-15; the root of the second moment is this times s / 2.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float second_unit(typename L::UInt code) {
        // The factor 2^-71 puts the exponent where doubling the bits needs no subtraction, so that zero stays
        // zero.
        return L::from_bits(L::bits(L::to_float(code) * L::broadcast(0x1p-71F)) << 1U);
    }
    /// The code of a first moment: m * encode = m / s * 16384; dither = dither_above_384 of its place.
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt first_code(typename L::Float m, typename L::Float encode,
                                                         typename L::UInt dither) {
        return ((first_sum<L>(m, encode, {}, dither) >> kCodeShift) & 0xffU) ^ kFirstFlip;
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt first_sum(typename L::Float m, typename L::Float encode,
                                                        typename L::Float /*reciprocal*/,
                                                        typename L::UInt dither) {
        typename L::Float y;
        if constexpr (requires { L::smaller_with_sign(m, m, m); }) {
            const auto z = absolute<L>(m) * encode;
            y = L::smaller_with_sign(z, half_law<L>(z), m);
        } else {
            const auto z = m * encode;
            y = L::smaller_magnitude(z, half_law<L>(absolute<L>(z)));
        }
        // The sum is rounded to the grid of 2^-15 and floored; as part of the format this absorbs the
        // rounding of factors.
        return L::bits(L::from_bits(dither) + y);
    }
    /// The code of a second moment: root * encode = 2 r / s; dither = dither_above_256 of its place.
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt second_code(typename L::Float root, typename L::Float encode,
                                                          typename L::UInt dither) {
        return (second_sum<L>(root, encode, {}, dither) >> kCodeShift) & 0xffU;
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt second_sum(typename L::Float root, typename L::Float encode,
                                                         typename L::Float /*reciprocal*/,
                                                         typename L::UInt dither) {
        const auto y = L::from_bits(L::bits(root * encode) >> 1U);
        return L::bits(L::fma(y, L::broadcast(0x1p71F), L::from_bits(dither)));
    }

    /// first_unit and second_unit of vector j of a unit.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float first_in_unit(const FirstCode* codes, int j) {
        if constexpr (requires { L::load_i8_over(0U, codes, j); }) {
            // A code above -128 in the lowest bits of 2^-41 counts units of 2^-64, exactly.
            constexpr std::uint32_t kBase = 86U << 23U;
            const auto c = L::from_bits(L::load_i8_over(kBase, codes, j)) -
                           L::from_bits(L::broadcast_bits(kBase + 0x80U));
            return L::from_bits(L::merge_bits(kSignBit, L::bits(c), L::bits(c) << 1U));
        } else {
            return first_unit<L>(L::load_i8(codes + j * L::kWidth));
        }
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float second_in_unit(const SecondCode* codes, int j) {
        // A code in the lowest bits of 2^-48 counts units of 2^-71, exactly.
        constexpr std::uint32_t kBase = 79U << 23U;
        const auto c =
            L::from_bits(L::load_u8_over(kBase, codes, j)) - L::from_bits(L::broadcast_bits(kBase));
        return L::from_bits(L::bits(c) << 1U);
    }
    /// The sticky scale of a group whose largest magnitude is `largest` and whose scale was `old_scale`.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float next_scale(typename L::Float largest,
                                                          typename L::Float old_scale, float tiny) {
        const auto too_large = L::less(old_scale * kKeepHigh, largest);
        const auto too_small = L::less(largest, old_scale * kKeepLow);
        const auto grown = L::from_bits((L::bits(largest * kHeadroom) + 0xffffU) & 0xffff0000U);
        const auto fresh = L::select(L::less(largest, L::broadcast(tiny)), L::broadcast(0.0F), grown);
        return L::select(L::either(too_large, too_small), fresh, old_scale);
    }
    /// `decay` multiplies the old moment, `gain` the gradient; carried units times `measure` are the moment
    /// itself.
    static FLASHOPTIM_INLINE MomentScalars first_scalars(double decay, double gain, double measure) {
        return {static_cast<float>(decay * static_cast<double>(kFirstUnit)), static_cast<float>(gain),
                static_cast<float>(measure), static_cast<float>(kFirstUnits * measure)};
    }
    /// The same for the root of the second moment: decay and measure are roots too.
    static FLASHOPTIM_INLINE MomentScalars second_scalars(double decay, double gain, double measure) {
        return {static_cast<float>(double_sqrt(decay) * 0.5), static_cast<float>(gain),
                static_cast<float>(double_sqrt(measure)), static_cast<float>(2.0 * double_sqrt(measure))};
    }
    template <class L>
    static FLASHOPTIM_INLINE void first_scale(typename L::Float largest, typename L::Float old_scale,
                                              const MomentScalars& k, typename L::Float& scale,
                                              typename L::Float& encode) {
        scale = next_scale<L>(largest * k.measure, old_scale, kTinyFirst);
        encode = quotient_or_zero<L>(k.encode, scale);
    }
    template <class L>
    static FLASHOPTIM_INLINE void second_scale(typename L::Float largest, typename L::Float old_scale,
                                               const MomentScalars& k, typename L::Float& scale,
                                               typename L::Float& encode) {
        scale = next_scale<L>(largest * k.measure, old_scale, kTinySecond);
        encode = quotient_or_zero<L>(k.encode, scale);
    }
    /// One of the two, as each lane asks: one computation where they differ from lane to lane.
    template <class L>
    static FLASHOPTIM_INLINE void either_scale(bool is_second, typename L::Float largest,
                                               typename L::Float old_scale, const MomentScalars& k,
                                               typename L::Float& scale, typename L::Float& encode) {
        scale = next_scale<L>(largest * k.measure, old_scale, is_second ? kTinySecond : kTinyFirst);
        encode = quotient_or_zero<L>(k.encode, scale);
    }
    template <class L = ScalarLanes>
    static FLASHOPTIM_INLINE typename L::Float scale_to_float(typename L::UInt bits) {
        return bfloat16_to_float<L>(bits);
    }
    template <class L = ScalarLanes>
    static FLASHOPTIM_INLINE typename L::UInt scale_bits(typename L::Float scale) {
        return L::bits(scale) >> 16U;
    }

private:
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float quotient_or_zero(float numerator, typename L::Float scale) {
        const auto is_zero = L::equal(scale, L::broadcast(0.0F));
        const auto divisor = L::select(is_zero, L::broadcast(1.0F), scale);
        return L::select(is_zero, L::broadcast(0.0F), L::divide(L::broadcast(numerator), divisor));
    }
};

/// Moments kept in fp32.
struct Float32Moments {
    using FirstCode = float;
    using SecondCode = float;
    static constexpr bool kGrouped = false;
    static constexpr bool kCarriesScaled = false;
    static constexpr float kFirstUnit = 1.0F, kSecondUnit = 1.0F;

    template <class L>
    using OldFirst = OldMoment<L>;
    template <class L>
    using OldSecond = OldMoment<L>;

    static FLASHOPTIM_INLINE MomentScalars first_scalars(double decay, double gain, double /*measure*/) {
        return {static_cast<float>(decay), static_cast<float>(gain), 1.0F, 1.0F};
    }
    static FLASHOPTIM_INLINE MomentScalars second_scalars(double decay, double gain, double measure) {
        return first_scalars(decay, gain, measure);
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
