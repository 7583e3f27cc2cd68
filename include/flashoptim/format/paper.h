// The number format of the paper (arXiv 2602.23349) and of its authors' package 0.1.4, reproduced bit for
// bit: softsign momentum, square-root variance, fp16 scales, and a correction normalised by the unit in the
// last place (ulp). Each operation rounds once; there is no fma.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/format/moments.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/dither.h"
#include "flashoptim/numeric/float16.h"
#include "flashoptim/numeric/quotient.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// The 16-bit type of a paper weight: how it rounds and how large the unit in its last place is.
struct PaperBfloat16 {
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float to_float(typename L::UInt hi) {
        return bfloat16_to_float<L>(hi);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt round(typename L::Float w) {
        return float_to_bfloat16<L>(w);
    }
    /// log2(ulp / 2) in two's complement. The ulp of zero and of subnormals is the smallest subnormal.
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt log2_half_ulp(typename L::UInt hi) {
        const auto exponent = (hi & 0x7fffU) >> 7U;
        return L::select_bits(L::equal_bits(exponent, L::broadcast_bits(0U)), L::broadcast_bits(1U),
                              exponent) -
               135U;
    }

    static constexpr float kOrdinary = 0x1p126F;
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float load_in_unit(const std::uint16_t* hi, int j) {
        return L::from_bits(L::load_high_u16(hi, j));
    }
    /// A weight below kOrdinary rounded to this type, as a float.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float round_ordinary(typename L::Float w) {
        const auto bits = L::bits(w);
        return L::from_bits((bits + 0x7fffU + ((bits >> 16U) & 1U)) & 0xffff0000U);
    }
    template <class L>
    static FLASHOPTIM_INLINE void store_unit(const typename L::Float (&rounded)[L::kUnit],
                                             std::uint16_t* hi) {
        typename L::UInt bits[L::kUnit];
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) bits[j] = L::bits(rounded[j]);
        L::store_high_u16(hi, bits);
    }
    /// x times ulp/2 of `value`, which is of this type. Not finite if `value` is not.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float times_half_ulp(typename L::Float x, typename L::Float value) {
        return x * (binade<L>(value) * L::broadcast(0x1p-8F));
    }
    /// `difference` divided by ulp/2 of `value`, exactly. `value` is an ordinary weight of this type.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float in_half_ulps(typename L::Float difference,
                                                            typename L::Float value) {
        constexpr std::uint32_t kTwiceBias = 254U << 23U;
        return (difference * L::broadcast(0x1p8F)) * L::from_bits(kTwiceBias - L::bits(binade<L>(value)));
    }

private:
    /// The largest power of two that is not above |value|, but at least the smallest normal number.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float binade(typename L::Float value) {
        return L::from_bits(L::max_bits(L::bits(value) & kInfinityBits, L::broadcast_bits(1U << 23U)));
    }
};
struct PaperFloat16 {
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float to_float(typename L::UInt hi) {
        return float16_to_float<L>(hi);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt round(typename L::Float w) {
        return float_to_float16<L>(w);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt log2_half_ulp(typename L::UInt hi) {
        const auto exponent = (hi & 0x7fffU) >> 10U;
        return L::select_bits(L::equal_bits(exponent, L::broadcast_bits(0U)), L::broadcast_bits(1U),
                              exponent) -
               26U;
    }

    static constexpr float kOrdinary = 0x1p15F;
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float load_in_unit(const std::uint16_t* hi, int j) {
        return float16_to_float<L>(L::load_u16(hi + j * L::kWidth));
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float round_ordinary(typename L::Float w) {
        return float16_to_float<L>(float_to_float16<L>(w));
    }
    template <class L>
    static FLASHOPTIM_INLINE void store_unit(const typename L::Float (&rounded)[L::kUnit],
                                             std::uint16_t* hi) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) {
            L::store_u16(hi + j * L::kWidth, float_to_float16<L>(rounded[j]));
        }
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float times_half_ulp(typename L::Float x, typename L::Float value) {
        return x * (binade<L>(value) * L::broadcast(0x1p-11F));
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float in_half_ulps(typename L::Float difference,
                                                            typename L::Float value) {
        constexpr std::uint32_t kReciprocal = (254U + 11U) << 23U;
        return difference * L::from_bits(kReciprocal - L::bits(binade<L>(value)));
    }

private:
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float binade(typename L::Float value) {
        return L::from_bits(L::max_bits(L::bits(value) & kInfinityBits, L::bits(L::broadcast(0x1p-14F))));
    }
};

/// x * 2^exponent as two products, so that neither power of two overflows or underflows.
template <class L>
FLASHOPTIM_INLINE typename L::Float scale_by_power(typename L::Float x, typename L::UInt exponent) {
    const auto half = L::shift_right_signed(exponent, 1);
    return (x * power_of_two<L>(half)) * power_of_two<L>(exponent - half);
}

/// A weight and its ulp-normalised correction: w = hi + lo/N * ulp(hi)/2, N = 127 or 32767 (paper, section
/// 3.1).
template <class Type, class CorrectionType>
struct PaperWeight {
    using Stored = std::uint16_t;
    using Correction = CorrectionType;
    static constexpr bool kProtected = false;
    static constexpr float kLevels = sizeof(CorrectionType) == 1 ? 127.0F : 32767.0F;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode(typename L::UInt hi, typename L::UInt lo) {
        const auto fraction = integer_quotient<L>(L::to_float(lo), kLevels);
        return Type::template to_float<L>(hi) +
               scale_by_power<L>(fraction, Type::template log2_half_ulp<L>(hi));
    }
    template <class L>
    static FLASHOPTIM_INLINE void encode(typename L::Float w, typename L::UInt /*dither*/,
                                         typename L::UInt& hi, typename L::UInt& lo) {
        hi = Type::template round<L>(w);
        lo = correction<L>(w, hi);
    }
    /// The correction that brings the stored weight `hi` nearest to w.
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt correction(typename L::Float w, typename L::UInt hi) {
        const auto exponent = L::broadcast_bits(0U) - Type::template log2_half_ulp<L>(hi);
        const auto error = scale_by_power<L>(w - Type::template to_float<L>(hi), exponent);
        const auto one = L::broadcast(1.0F);
        // An infinite weight gives a NaN here. The clamp of the authors' code turns that NaN into -1.
        auto magnitude = absolute<L>(error);
        magnitude = L::select(L::less(magnitude, one), magnitude, one);
        const auto level = L::truncate(magnitude * kLevels + 0.5F);
        const auto negative =
            L::negate(L::either(L::less(L::broadcast(0.0F), error), L::equal(L::broadcast(0.0F), error)));
        const auto signs = L::select_bits(negative, L::broadcast_bits(0xffffffffU), L::broadcast_bits(0U));
        return (level ^ signs) - signs;
    }

    static constexpr float kOrdinary = Type::kOrdinary;
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode_in_unit(const Stored* hi, const Correction* lo, int j) {
        const auto value = Type::template load_in_unit<L>(hi, j);
        const auto fraction =
            integer_quotient<L>(L::to_float(load_correction<L>(lo + j * L::kWidth)), kLevels);
        return value + Type::template times_half_ulp<L>(fraction, value);
    }
    template <class L, class Dither>
    static FLASHOPTIM_INLINE void encode_unit(const typename L::Float (&w)[L::kUnit],
                                              const Dither& /*dither*/, std::uint32_t /*place*/, Stored* hi,
                                              Correction* lo) {
        typename L::Float rounded[L::kUnit];
        typename L::UInt levels[L::kUnit];
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) {
            rounded[j] = Type::template round_ordinary<L>(w[j]);
            // |error| is at most 1, because w was rounded to nearest: no clamp is needed.
            const auto error = Type::template in_half_ulps<L>(w[j] - rounded[j], rounded[j]);
            const auto half =
                L::from_bits(L::merge_bits(kSignBit, L::bits(error), L::bits(L::broadcast(0.5F))));
            levels[j] = L::truncate(error * kLevels + half);
        }
        Type::template store_unit<L>(rounded, hi);
        if constexpr (sizeof(Correction) == 1) {
            L::template store_byte<0>(lo, levels, 0U);
        } else {
            L::store_low_u16(lo, levels, 0U);
        }
    }

private:
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt load_correction(const Correction* lo) {
        if constexpr (sizeof(Correction) == 1) {
            return L::load_i8(lo);
        } else {
            return L::load_i16(lo);
        }
    }
};

/// A 16-bit weight without a correction (master_weight_bits=None).
template <class Type>
struct PaperPlainWeight {
    using Stored = std::uint16_t;
    using Correction = void;
    static constexpr bool kProtected = false;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode(typename L::UInt hi, typename L::UInt /*lo*/) {
        return Type::template to_float<L>(hi);
    }
    template <class L>
    static FLASHOPTIM_INLINE void encode(typename L::Float w, typename L::UInt /*dither*/,
                                         typename L::UInt& hi, typename L::UInt& /*lo*/) {
        hi = Type::template round<L>(w);
    }

    static constexpr float kOrdinary = Type::kOrdinary;
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode_in_unit(const Stored* hi, const std::int8_t* /*lo*/,
                                                              int j) {
        return Type::template load_in_unit<L>(hi, j);
    }
    template <class L, class Dither>
    static FLASHOPTIM_INLINE void encode_unit(const typename L::Float (&w)[L::kUnit],
                                              const Dither& /*dither*/, std::uint32_t /*place*/, Stored* hi,
                                              std::int8_t* /*lo*/) {
        typename L::Float rounded[L::kUnit];
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) rounded[j] = Type::template round_ordinary<L>(w[j]);
        Type::template store_unit<L>(rounded, hi);
    }
};

/// Softsign codes of signed moments, and linear codes of the roots of squared moments (paper, section 3.2).
struct PaperMoments {
    static constexpr bool kCarriesScaled = false;
    static constexpr bool kDivides = true;
    static constexpr int kCodeShift = 0;
    static constexpr float kSmallest = 1e-12F;  // the least group maximum

    /// The common part of both kinds.
    struct Either {
        static constexpr bool kGrouped = true;
        static constexpr float kUnit = 1.0F;
        static constexpr std::uint32_t kFlip = 0U;

        /// All 1: the paper's rules multiply by their own constants.
        static FLASHOPTIM_INLINE MomentScalars scalars(double /*decay*/, double /*gain*/,
                                                       double /*measure*/) {
            return {1.0F, 1.0F, 1.0F, 1.0F};
        }
        /// Encoding divides by the fp32 maximum, decoding multiplies by the stored fp16 one.
        template <class L>
        static FLASHOPTIM_INLINE void new_scale(typename L::Float largest, typename L::Float /*old_scale*/,
                                                const MomentScalars& /*k*/, typename L::Float& scale,
                                                typename L::Float& encode) {
            encode = L::max_ignoring_nan(largest, L::broadcast(kSmallest));
            scale = float16_to_float<L>(float_to_float16<L>(encode));
        }
    };

    struct Signed : Either {
        using Code = std::int8_t;
        template <class L>
        using Old = OldMoment<L>;

        /// y / (2 - |y|) with y = q / 127. The moment is this value times the scale.
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit(typename L::UInt code) {
            const auto y = integer_quotient<L>(L::to_float(code), 127.0F);
            return L::divide(y, 2.0F - absolute<L>(y));
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit_of_vector(const Code* codes, int j) {
            return unit<L>(L::load_i8(codes + j * L::kWidth));
        }
        /// floor(2x / (1 + |x|) * 127 + 1/2), x = m / a.
        template <class L>
        static FLASHOPTIM_INLINE typename L::UInt code(typename L::Float m, typename L::Float a,
                                                       typename L::UInt /*dither*/) {
            return L::floor_to_integer(finite_or_zero<L>(level<L>(L::divide(m, a))));
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::UInt sum(typename L::Float m, typename L::Float a,
                                                      typename L::Float reciprocal,
                                                      typename L::UInt /*dither*/) {
            return L::floor_to_integer(level<L>(group_quotient<L>(m, a, reciprocal)));
        }

    private:
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float level(typename L::Float x) {
            return L::divide(x * 2.0F, absolute<L>(x) + 1.0F) * 127.0F + 0.5F;
        }
    };

    struct Squared : Either {
        using Code = std::uint8_t;
        template <class L>
        using Old = OldRootMoment<L>;

        /// c / 255. The root of the moment is this value times the scale.
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit(typename L::UInt code) {
            return integer_quotient<L>(L::to_float(code), 255.0F);
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float unit_of_vector(const Code* codes, int j) {
            return unit<L>(L::load_u8(codes + j * L::kWidth));
        }
        /// floor(r / a * 255 + 1/2).
        template <class L>
        static FLASHOPTIM_INLINE typename L::UInt code(typename L::Float root, typename L::Float a,
                                                       typename L::UInt /*dither*/) {
            return L::truncate(finite_or_zero<L>(level<L>(L::divide(root, a))));
        }
        template <class L>
        static FLASHOPTIM_INLINE typename L::UInt sum(typename L::Float root, typename L::Float a,
                                                      typename L::Float reciprocal,
                                                      typename L::UInt /*dither*/) {
            return L::truncate(level<L>(group_quotient<L>(root, a, reciprocal)));
        }

    private:
        template <class L>
        static FLASHOPTIM_INLINE typename L::Float level(typename L::Float x) {
            return x * 255.0F + 0.5F;
        }
    };

    template <MomentKind kKind>
    using Of = std::conditional_t<kKind == MomentKind::kSquared, Squared, Signed>;

    template <class L>
    static FLASHOPTIM_INLINE void new_scale_of(bool /*is_squared*/, typename L::Float largest,
                                               typename L::Float old_scale, const MomentScalars& k,
                                               typename L::Float& scale, typename L::Float& encode) {
        Either::new_scale<L>(largest, old_scale, k, scale, encode);
    }
    template <class L = ScalarLanes>
    static FLASHOPTIM_INLINE typename L::Float scale_to_float(typename L::UInt bits) {
        return float16_to_float<L>(bits);
    }
    template <class L = ScalarLanes>
    static FLASHOPTIM_INLINE typename L::UInt scale_bits(typename L::Float scale) {
        return float_to_float16<L>(scale);
    }

private:
    /// x / a for |x| <= a. For a tiny x the quotient may not be correctly rounded. It is then far below half
    /// a code, since a is at least 1e-12, so the code is the same.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float group_quotient(typename L::Float x, typename L::Float a,
                                                              typename L::Float reciprocal) {
        if constexpr (L::kHasFastFma) {
            return corrected_quotient<L>(x, a, reciprocal);
        } else {
            return L::divide(x, a);
        }
    }
    /// A NaN (from an infinite moment) has no code of its own and gets the code of zero.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float finite_or_zero(typename L::Float x) {
        return L::select(is_nan<L>(x), L::broadcast(0.0F), x);
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
