// How the native format stores a moment: 8-bit codes of a piecewise-linear square law, with one
// sticky bfloat16 scale for each group. Uncompressed fp32 moments are here too: they follow the same
// rules with another storage.
//
// Every format of moments offers
//     kGrouped                       whether groups of 32 share a scale
//     kCarriesScaled                 whether it returns m/(1-beta) in place of m, so that the gradient is
//                                    added to a moment without a multiplication
//     Of<kind>                       how a moment of this kind is stored
// and for each kind
//     Code                           the type in memory
//     Old<L>                         an old moment as the rules read it (format/moments.h)
//     scalars                        what a step needs of the rule's constants
// and a grouped one for each kind
//     kUnit                          an old moment is `unit` times the group's scale times this
//     unit<L>                        what a code stands for, but for the group's factor
//     new_scale<L>                   the new scale of a group and the factor its codes are made with
//     code<L>                        the code of a new moment, of a squared one's root
// and for units of vectors (step/lanes/)
//     unit_of_vector<L>              units of vector j
//     sum<L>                         codes of new moments from bit kCodeShift on, to be flipped by kFlip
//     kDivides                       whether it takes the reciprocal of the factor beside it
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <type_traits>

#include "flashoptim/format/moments.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/dither.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// half(x) = F((B(x) >> 1) + 0x1FC00000): the square root at powers of 4, within 6 % of it
/// elsewhere. half(0) is 2^-63.5.
template <class L>
FLASHOPTIM_INLINE typename L::Float half_law(typename L::Float x) {
    return L::from_bits((L::bits(x) >> 1U) + 0x1FC00000U);
}
/// The square-law codes.
struct NativeMoments {
    static constexpr bool kGrouped = true;
    static constexpr bool kCarriesScaled = true;
    static constexpr bool kDivides = false;
    static constexpr int kCodeShift = 15;
    static constexpr float kKeepLow = 0.7F,
                           kKeepHigh = 0.98F;  // a scale stays while the largest is in between
    static constexpr float kHeadroom = 1.1F;   // a new scale is the largest times this, rounded up

    /// Codes of either sign.
    struct Signed {
        using Code = std::int8_t;
        template <class L>
        using Old = OldMoment<L>;
        static constexpr double kUnits = 16384.0;  // z = |m| / s * 16384
        static constexpr float kUnit = 0x1p-13F;   // m = unit * s * this
        static constexpr std::uint32_t kFlip = 0x80U;
        static constexpr float kTiny = 0x1p-100F;  // a group whose largest |m| is below is stored as zero

        /// sign(q) * twice(|q|) / 2; the moment is this times s / 8192. `code` is sign-extended.
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit(typename L::UInt code) {
            // The factor 2^-64 puts the exponent where doubling the bits needs no
            // subtraction, so that zero stays zero.
            const auto bits = L::bits(L::to_float(code) * L::broadcast(0x1p-64F));
            return L::from_bits(L::merge_bits(kSignBit, bits, bits << 1U));
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit_of_vector(const Code* codes, int j) {
            if constexpr (requires { L::load_i8_over(0U, codes, j); }) {
                // A code above -128 in the lowest bits of 2^-41 counts units of 2^-64, exactly.
                constexpr std::uint32_t kBase = 86U << 23U;
                const auto c = L::from_bits(L::load_i8_over(kBase, codes, j)) -
                               L::from_bits(L::broadcast_bits(kBase + 0x80U));
                return L::from_bits(L::merge_bits(kSignBit, L::bits(c), L::bits(c) << 1U));
            } else {
                return unit<L>(L::load_i8(codes + j * L::kWidth));
            }
        }
        /// m * encode = m / s * 16384.
        template <class L>
        static FLASHOPTIM_INLINE typename L::UInt code(typename L::Float m, typename L::Float encode,
                                                       typename L::UInt dither) {
            return ((sum<L>(m, encode, {}, dither) >> kCodeShift) & 0xffU) ^ kFlip;
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::UInt sum(typename L::Float m, typename L::Float encode,
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
            // The sum is rounded to the grid of 2^-15 and floored; as part of the format this
            // absorbs the rounding of factors.
            return L::bits(L::from_bits(dither) + y);
        }
        /// `decay` multiplies the old moment, `gain` the gradient; carried units times
        /// `measure` are the moment itself.
        static FLASHOPTIM_INLINE MomentScalars scalars(double decay, double gain, double measure) {
            return {static_cast<float>(decay * static_cast<double>(kUnit)), static_cast<float>(gain),
                    static_cast<float>(measure), static_cast<float>(kUnits * measure)};
        }
        template <class L>
        static FLASHOPTIM_INLINE void new_scale(typename L::Float largest, typename L::Float old_scale,
                                                const MomentScalars& k, typename L::Float& scale,
                                                typename L::Float& encode) {
            choose_scale<L>(kTiny, largest, old_scale, k, scale, encode);
        }
    };

    /// Codes of the root, which is never negative.
    struct Squared {
        using Code = std::uint8_t;
        template <class L>
        using Old = OldRootMoment<L>;
        static constexpr float kUnit = 0.5F;  // r = unit * s * this
        static constexpr std::uint32_t kFlip = 0U;
        static constexpr float kTiny = 0x1p-60F;  // a group whose largest r is below is stored as zero

        /// twice(c) * 2^-15; the root of the moment is this times s / 2.
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit(typename L::UInt code) {
            // The factor 2^-71 puts the exponent where doubling the bits needs no
            // subtraction, so that zero stays zero.
            return L::from_bits(L::bits(L::to_float(code) * L::broadcast(0x1p-71F)) << 1U);
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit_of_vector(const Code* codes, int j) {
            // A code in the lowest bits of 2^-48 counts units of 2^-71, exactly.
            constexpr std::uint32_t kBase = 79U << 23U;
            const auto c =
                L::from_bits(L::load_u8_over(kBase, codes, j)) - L::from_bits(L::broadcast_bits(kBase));
            return L::from_bits(L::bits(c) << 1U);
        }
        /// root * encode = 2 r / s.
        template <class L>
        static FLASHOPTIM_INLINE typename L::UInt code(typename L::Float root, typename L::Float encode,
                                                       typename L::UInt dither) {
            return (sum<L>(root, encode, {}, dither) >> kCodeShift) & 0xffU;
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::UInt sum(typename L::Float root, typename L::Float encode,
                                                      typename L::Float /*reciprocal*/,
                                                      typename L::UInt dither) {
            const auto y = L::from_bits(L::bits(root * encode) >> 1U);
            return L::bits(L::fma(y, L::broadcast(0x1p71F), L::from_bits(dither)));
        }
        /// As a signed moment's; decay and measure are roots too.
        static FLASHOPTIM_INLINE MomentScalars scalars(double decay, double gain, double measure) {
            return {static_cast<float>(double_sqrt(decay) * 0.5), static_cast<float>(gain),
                    static_cast<float>(double_sqrt(measure)), static_cast<float>(2.0 * double_sqrt(measure))};
        }
        template <class L>
        static FLASHOPTIM_INLINE void new_scale(typename L::Float largest, typename L::Float old_scale,
                                                const MomentScalars& k, typename L::Float& scale,
                                                typename L::Float& encode) {
            choose_scale<L>(kTiny, largest, old_scale, k, scale, encode);
        }
    };

    template <MomentKind kKind>
    using Of = std::conditional_t<kKind == MomentKind::kSquared, Squared, Signed>;

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
    /// new_scale of a kind that each lane chooses for itself: one computation where lanes differ.
    template <class L>
    static FLASHOPTIM_INLINE void new_scale_of(bool is_squared, typename L::Float largest,
                                               typename L::Float old_scale, const MomentScalars& k,
                                               typename L::Float& scale, typename L::Float& encode) {
        choose_scale<L>(is_squared ? Squared::kTiny : Signed::kTiny, largest, old_scale, k, scale, encode);
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
    static FLASHOPTIM_INLINE void choose_scale(float tiny, typename L::Float largest,
                                               typename L::Float old_scale, const MomentScalars& k,
                                               typename L::Float& scale, typename L::Float& encode) {
        scale = next_scale<L>(largest * k.measure, old_scale, tiny);
        const auto is_zero = L::equal(scale, L::broadcast(0.0F));
        const auto divisor = L::select(is_zero, L::broadcast(1.0F), scale);
        encode = L::select(is_zero, L::broadcast(0.0F), L::divide(L::broadcast(k.encode), divisor));
    }
};

/// Moments kept in fp32.
struct Float32Moments {
    static constexpr bool kGrouped = false;
    static constexpr bool kCarriesScaled = false;

    struct Plain {
        using Code = float;
        template <class L>
        using Old = OldMoment<L>;
        static constexpr float kUnit = 1.0F;

        static FLASHOPTIM_INLINE MomentScalars scalars(double decay, double gain, double /*measure*/) {
            return {static_cast<float>(decay), static_cast<float>(gain), 1.0F, 1.0F};
        }
    };
    using Signed = Plain;
    using Squared = Plain;
    template <MomentKind>
    using Of = Plain;
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
