// How the native format stores moments: means of gradients and of their squares as 8-bit codes of a
// piecewise-linear square law, with one sticky bfloat16 scale for each group, and the other kinds as plain
// 16-bit numbers (docs/formats.md). A scale is sticky: it changes only when the group's largest magnitude
// leaves a band around it. Uncompressed fp32 moments are here too.
//
// Every format of moments has
//     kCarriesScaled                 whether rules compute with m/(1-beta) in place of m, which saves the
//                                    multiplication of the gradient by 1-beta. It is for means (kSigned and
//                                    kSquared) only
//     Of<kind>                       how a moment of this kind is stored
// and for each kind
//     Code                           the type in memory
//     kGrouped                       whether groups of 32 share a scale
//     Old<L>                         an old moment as the rules read it (format/moments.h)
//     scalars                        the MomentScalars of a step, from the rule's constants
//     unit<L>                        the value of a code, without the group's factor
//     code<L>                        the code of a new moment. A grouped squared moment encodes its root
//     unit_of_vector<L>              unit<L> of the codes of vector j of a unit of vectors (step/lanes/)
// A kind in groups also has
//     kUnit                          an old moment (or root) is unit<L>(code) * scale * kUnit
//     new_scale<L>                   the new scale of a group and the factor that encodes its moments
//     sum<L>                         a number that has the code at bit kCodeShift, before XOR with kFlip
// and its format
//     kDivides                       whether sum<L> divides by the factor and takes its reciprocal too
// A kind without groups has
//     store_unit<L>                  encodes and stores a whole unit of vectors
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <type_traits>

#include "flashoptim/dtype.h"
#include "flashoptim/format/moments.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/dither.h"
#include "flashoptim/numeric/float16.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// half(x) = F((B(x) >> 1) + 0x1FC00000), where B gives the bits of a float and F the reverse. It is the
/// square root at powers of 4 and within 6 % of it elsewhere. half(0) is 2^-63.5.
template <class L>
FLASHOPTIM_INLINE typename L::Float half_law(typename L::Float x) {
    return L::from_bits((L::bits(x) >> 1U) + 0x1FC00000U);
}

/// What the moments that are numbers of their own, without scales, have in common.
struct PlainMoment {
    static constexpr bool kGrouped = false;
    static constexpr float kUnit = 1.0F;
    template <class L>
    using Old = OldMoment<L>;

    static FLASHOPTIM_INLINE MomentScalars scalars(double decay, double gain, double /*measure*/) {
        return {static_cast<float>(decay), static_cast<float>(gain), 1.0F, 1.0F};
    }
};

struct Float32Moment : PlainMoment {
    using Code = float;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float unit(typename L::UInt code) {
        return L::from_bits(code);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt code(typename L::Float m, typename L::Float /*encode*/,
                                                   typename L::UInt /*dither*/) {
        return L::bits(m);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float unit_of_vector(const Code* codes, int j) {
        return L::load_f32(codes + j * L::kWidth);
    }
    template <class L>
    static FLASHOPTIM_INLINE void store_unit(Code* to, const typename L::Float (&m)[L::kUnit],
                                             const std::uint32_t* /*dither*/) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) L::store_f32(to + j * L::kWidth, m[j]);
    }
};

/// 16-bit numbers. Number::code() rounds; its result is the upper half of a lane.
template <class Number>
struct HalfMoment : PlainMoment {
    using Code = std::uint16_t;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float unit(typename L::UInt code) {
        return Number::template value<L>(code << 16U);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt code(typename L::Float m, typename L::Float /*encode*/,
                                                   typename L::UInt dither) {
        return Number::template rounded<L>(m, dither) >> 16U;
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float unit_of_vector(const Code* codes, int j) {
        return Number::template value<L>(L::load_high_u16(codes, j));
    }
    template <class L>
    static FLASHOPTIM_INLINE void store_unit(Code* to, const typename L::Float (&m)[L::kUnit],
                                             const std::uint32_t* dither) {
        typename L::UInt high[L::kUnit];
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) {
            high[j] = Number::template rounded<L>(m[j], L::load_u32(dither + j * L::kWidth));
        }
        L::store_high_u16(to, high);
    }
};
/// bfloat16, rounded with the upper 16 dither bits.
struct DitheredBfloat16 {
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float value(typename L::UInt high) {
        return L::from_bits(high);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt rounded(typename L::Float m, typename L::UInt dither) {
        return L::bits(m) + dither;
    }
};
/// bfloat16, rounded to nearest even.
struct NearestBfloat16 : DitheredBfloat16 {
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt rounded(typename L::Float m, typename L::UInt /*dither*/) {
        const auto bits = L::bits(m);
        return bits + 0x7fffU + ((bits >> 16U) & 1U);
    }
};
/// binary16, rounded to nearest even. Numbers beyond its range become its largest.
struct NearestFloat16 {
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float value(typename L::UInt high) {
        return float16_to_float<L>(high >> 16U);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt rounded(typename L::Float m, typename L::UInt /*dither*/) {
        const auto magnitude = L::min_bits(float_to_float16<L>(absolute<L>(m)), L::broadcast_bits(0x7bffU));
        return L::merge_bits(kSignBit, L::bits(m), magnitude << 16U);
    }
};

/// The square-law codes, and bfloat16 for slow means.
struct NativeMoments {
    static constexpr bool kCarriesScaled = true;
    static constexpr bool kDivides = false;
    static constexpr int kCodeShift = 15;
    static constexpr float kKeepLow = 0.7F,
                           kKeepHigh = 0.98F;  // a scale stays while largest / scale is between
    static constexpr float kHeadroom = 1.1F;   // a new scale is largest * kHeadroom, rounded up

    /// Signed codes of a signed moment m. s is the group's scale.
    struct Signed {
        using Code = std::int8_t;
        static constexpr bool kGrouped = true;
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
        static constexpr bool kGrouped = true;
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

    using Slow = HalfMoment<DitheredBfloat16>;
    /// Of float32 weights. Others have NativeMomentsAndGradient.
    using Gradient = Float32Moment;
    template <MomentKind kKind>
    using Of = MomentOf<NativeMoments, kKind>;

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

/// NativeMoments with the last gradient in another type, that of the weights.
template <class GradientMoment>
struct NativeMomentsAndGradient : NativeMoments {
    using Gradient = GradientMoment;
    template <MomentKind kKind>
    using Of = MomentOf<NativeMomentsAndGradient, kKind>;
};

/// Moments kept in fp32.
struct Float32Moments {
    static constexpr bool kCarriesScaled = false;

    using Signed = Float32Moment;
    using Squared = Float32Moment;
    using Slow = Float32Moment;
    using Gradient = Float32Moment;
    template <MomentKind>
    using Of = Float32Moment;
};

/// Moment format M of rule R for weights of format W: in the native format the last gradient has the weights'
/// dtype.
template <class R, class M, class W>
struct MomentsFor {
    using Type = M;
};
template <class R, class W>
    requires R::Moments::kKeepsGradient
struct MomentsFor<R, NativeMoments, W> {
    using Type = std::conditional_t<
        W::kDType == DType::kBFloat16, NativeMomentsAndGradient<HalfMoment<NearestBfloat16>>,
        std::conditional_t<W::kDType == DType::kFloat16, NativeMomentsAndGradient<HalfMoment<NearestFloat16>>,
                           NativeMoments>>;
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
