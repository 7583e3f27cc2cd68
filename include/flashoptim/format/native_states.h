// How the native format stores a moment: 8-bit codes of a piecewise-linear square law, with one sticky
// bfloat16 scale for each group (docs/formats.md). A scale is sticky: it changes only when the group's
// largest magnitude leaves a band around it. Uncompressed fp32 moments are here too.
//
// Every format of moments has
//     kGrouped                       whether groups of 32 share a scale
//     kCarriesScaled                 whether rules compute with m/(1-beta) in place of m, which saves the
//                                    multiplication of the gradient by 1-beta
//     Of<kind>                       how a moment of this kind is stored
// and for each kind
//     Code                           the type in memory
//     Old<L>                         an old moment as the rules read it (format/moments.h)
//     scalars                        the MomentScalars of a step, from the rule's constants
// A grouped format also has for each kind
//     kUnit                          an old moment (or root) is unit<L>(code) * scale * kUnit
//     unit<L>                        the value of a code, without the group's factor
//     new_scale<L>                   the new scale of a group and the factor that encodes its moments
//     code<L>                        the code of a new moment (of its root for a squared moment)
// and for whole units of vectors (step/lanes/)
//     unit_of_vector<L>              unit<L> of the codes of vector j
//     sum<L>                         a number that has the code at bit kCodeShift, before XOR with kFlip
//     kDivides                       whether sum<L> divides by the factor and takes its reciprocal too
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <type_traits>

#include "flashoptim/format/moments.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/dither.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// half(x) = F((B(x) >> 1) + 0x1FC00000), where B gives the bits of a float and F the reverse. It is the
/// square root at powers of 4 and within 6 % of it elsewhere. half(0) is 2^-63.5.
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
                           kKeepHigh = 0.98F;  // a scale stays while largest / scale is between
    static constexpr float kHeadroom = 1.1F;   // a new scale is largest * kHeadroom, rounded up

    /// Signed codes of a signed moment m. s is the group's scale.
    struct Signed {
        using Code = std::int8_t;
        template <class L>
        using Old = OldMoment<L>;
        static constexpr double kUnits = 16384.0;  // z = |m| / s * 16384
        static constexpr float kUnit = 0x1p-13F;   // m = unit * s * kUnit
        static constexpr std::uint32_t kFlip = 0x80U;
        static constexpr float kTiny = 0x1p-100F;  // a group with smaller |m| only is stored as zero

        /// sign(q) * twice(|q|) / 2, where twice() is the inverse of half(). `code` is sign-extended.
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit(typename L::UInt code) {
            // After the factor 2^-64 doubling the bits squares the value without a subtraction of the
            // exponent's bias, so that zero stays zero.
            const auto bits = L::bits(L::to_float(code) * L::broadcast(0x1p-64F));
            return L::from_bits(L::merge_bits(kSignBit, bits, bits << 1U));
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit_of_vector(const Code* codes, int j) {
            if constexpr (requires { L::load_i8_over(0U, codes, j); }) {
                // The spacing of floats at 2^-41 is 2^-64. So the code, put in the lowest bits of 2^-41,
                // counts units of 2^-64 exactly.
                constexpr std::uint32_t kBase = 86U << 23U;
                const auto c = L::from_bits(L::load_i8_over(kBase, codes, j)) -
                               L::from_bits(L::broadcast_bits(kBase + 0x80U));
                return L::from_bits(L::merge_bits(kSignBit, L::bits(c), L::bits(c) << 1U));
            } else {
                return unit<L>(L::load_i8(codes + j * L::kWidth));
            }
        }
        /// `encode` is kUnits / s, so that m * encode = m / s * 16384.
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
            // The addition rounds to the spacing of 384 + u, which is 2^-15; the shift then floors. This
            // rounding is part of the format. It absorbs the rounding errors of the factors.
            return L::bits(L::from_bits(dither) + y);
        }
        /// `decay` multiplies the old moment and `gain` the gradient. A moment is its carried value times
        /// `measure`.
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

    /// Unsigned codes of the root r of a squared moment. s is the group's scale.
    struct Squared {
        using Code = std::uint8_t;
        template <class L>
        using Old = OldRootMoment<L>;
        static constexpr float kUnit = 0.5F;  // r = unit * s * kUnit
        static constexpr std::uint32_t kFlip = 0U;
        static constexpr float kTiny = 0x1p-60F;  // a group with smaller r only is stored as zero

        /// twice(c) * 2^-15, where twice() is the inverse of half().
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit(typename L::UInt code) {
            // After the factor 2^-71 doubling the bits squares the value without a subtraction of the
            // exponent's bias, so that zero stays zero.
            return L::from_bits(L::bits(L::to_float(code) * L::broadcast(0x1p-71F)) << 1U);
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit_of_vector(const Code* codes, int j) {
            // The spacing of floats at 2^-48 is 2^-71. So the code, put in the lowest bits of 2^-48, counts
            // units of 2^-71 exactly.
            constexpr std::uint32_t kBase = 79U << 23U;
            const auto c =
                L::from_bits(L::load_u8_over(kBase, codes, j)) - L::from_bits(L::broadcast_bits(kBase));
            return L::from_bits(L::bits(c) << 1U);
        }
        /// `encode` is 2 / s, so that root * encode = 2 r / s.
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
        /// As Signed::scalars. Decay and measure are stored as roots, because they multiply the root.
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

    /// The new scale of a group whose largest magnitude is `largest` and whose scale was `old_scale`.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float next_scale(typename L::Float largest,
                                                          typename L::Float old_scale, float tiny) {
        const auto too_large = L::less(old_scale * kKeepHigh, largest);
        const auto too_small = L::less(largest, old_scale * kKeepLow);
        const auto grown = L::from_bits((L::bits(largest * kHeadroom) + 0xffffU) & 0xffff0000U);
        const auto fresh = L::select(L::less(largest, L::broadcast(tiny)), L::broadcast(0.0F), grown);
        return L::select(L::either(too_large, too_small), fresh, old_scale);
    }
    /// new_scale for a kind that is known only at run time. On a GPU, threads with different kinds then share
    /// one computation.
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
