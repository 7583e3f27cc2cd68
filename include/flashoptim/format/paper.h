// The number format of the paper (arXiv 2602.23349) and of its authors' package 0.1.4, kept exactly: softsign momentum, square
// root variance, fp16 scales, and a correction normalised by the unit in the last place. One rounding per operation, no fma.
#pragma once

#include <cstdint>

#include "flashoptim/format/moments.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/float16.h"
#include "flashoptim/numeric/quotient.h"

namespace flashoptim {

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
    /// log2(ulp / 2), the ulp of zero and of subnormals being the smallest subnormal (two's complement).
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt log2_half_ulp(typename L::UInt hi) {
        const auto exponent = (hi & 0x7fffU) >> 7U;
        return L::select_bits(L::equal_bits(exponent, L::broadcast_bits(0U)), L::broadcast_bits(1U),
                              exponent) -
               135U;
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
};

/// x * 2^exponent in two factors, so that neither over- nor underflows on the way.
template <class L>
FLASHOPTIM_INLINE typename L::Float scale_by_power(typename L::Float x, typename L::UInt exponent) {
    const auto half = L::shift_right_signed(exponent, 1);
    return (x * power_of_two<L>(half)) * power_of_two<L>(exponent - half);
}

/// Weight and ULP-normalised correction: w = hi + lo/N * ulp(hi)/2, N = 127 or 32767 (paper, section 3.1).
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
        const auto exponent = L::broadcast_bits(0U) - Type::template log2_half_ulp<L>(hi);
        const auto error = scale_by_power<L>(w - Type::template to_float<L>(hi), exponent);
        const auto one = L::broadcast(1.0F);
        // The clamp of the authors' code takes a NaN (from an infinite weight) to -1.
        auto magnitude = absolute<L>(error);
        magnitude = L::select(L::less(magnitude, one), magnitude, one);
        const auto level = L::truncate(magnitude * kLevels + 0.5F);
        const auto negative =
            L::negate(L::either(L::less(L::broadcast(0.0F), error), L::equal(L::broadcast(0.0F), error)));
        const auto signs = L::select_bits(negative, L::broadcast_bits(0xffffffffU), L::broadcast_bits(0U));
        lo = (level ^ signs) - signs;
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
};

/// Softsign codes of the first moment and linear codes of the root of the second (paper, section 3.2).
struct PaperMoments {
    using FirstCode = std::int8_t;
    using SecondCode = std::uint8_t;
    static constexpr bool kGrouped = true;
    static constexpr bool kCarriesScaled = false;
    static constexpr bool kDivides = true;
    static constexpr float kFirstUnit = 1.0F, kSecondUnit = 1.0F;
    static constexpr float kSmallest = 1e-12F;  // the least group maximum

    template <class L>
    using OldFirst = OldMoment<L>;
    template <class L>
    using OldSecond = OldRootMoment<L>;

    /// The rules of the paper multiply by their own constants.
    static FLASHOPTIM_INLINE MomentScalars first_scalars(double /*decay*/, double /*gain*/,
                                                         double /*measure*/) {
        return {1.0F, 1.0F, 1.0F, 1.0F};
    }
    static FLASHOPTIM_INLINE MomentScalars second_scalars(double decay, double gain, double measure) {
        return first_scalars(decay, gain, measure);
    }
    /// Encoding divides by the fp32 maximum, decoding multiplies by the stored fp16 one.
    template <class L>
    static FLASHOPTIM_INLINE void first_scale(typename L::Float largest, typename L::Float /*old_scale*/,
                                              const MomentScalars& /*k*/, typename L::Float& scale,
                                              typename L::Float& encode) {
        encode = L::max_ignoring_nan(largest, L::broadcast(kSmallest));
        scale = float16_to_float<L>(float_to_float16<L>(encode));
    }
    template <class L>
    static FLASHOPTIM_INLINE void second_scale(typename L::Float largest, typename L::Float old_scale,
                                               const MomentScalars& k, typename L::Float& scale,
                                               typename L::Float& encode) {
        first_scale<L>(largest, old_scale, k, scale, encode);
    }

    /// y / (2 - |y|) with y = q / 127; the first moment is this times the scale.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float first_unit(typename L::UInt code) {
        const auto y = integer_quotient<L>(L::to_float(code), 127.0F);
        return L::divide(y, 2.0F - absolute<L>(y));
    }
    /// c / 255; the root of the second moment is this times the scale.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float second_unit(typename L::UInt code) {
        return integer_quotient<L>(L::to_float(code), 255.0F);
    }
    /// floor(2x / (1 + |x|) * 127 + 1/2), x = m / a. `reciprocal`: group_reciprocal of a.
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt first_code(typename L::Float m, typename L::Float a,
                                                         typename L::UInt /*dither*/,
                                                         float reciprocal = 0.0F) {
        const auto x = group_quotient<L>(m, a, reciprocal);
        const auto y = L::divide(x * 2.0F, absolute<L>(x) + 1.0F) * 127.0F + 0.5F;
        return floor_to_integer<L>(y);
    }
    /// floor(r / a * 255 + 1/2).
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt second_code(typename L::Float root, typename L::Float a,
                                                          typename L::UInt /*dither*/,
                                                          float reciprocal = 0.0F) {
        return L::truncate(finite_or_zero<L>(group_quotient<L>(root, a, reciprocal) * 255.0F + 0.5F));
    }
    /// 1/a for group_quotient, 0 where it must divide.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float group_reciprocal(typename L::Float a) {
        const auto zero = L::broadcast(0.0F);
        return L::select(L::less(a, L::broadcast(0x1p90F)), L::divide(L::broadcast(1.0F), a), zero);
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
    /// x / a for |x| <= a. A quotient that is not exact because x is below 2^-90 is far below half a code (a is at least 1e-12).
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float group_quotient(typename L::Float x, typename L::Float a,
                                                              float reciprocal) {
        if constexpr (L::kHasFastFma) {
            if (reciprocal != 0.0F) [[likely]]
                return corrected_quotient<L>(x, a, L::broadcast(reciprocal));
        }
        return L::divide(x, a);
    }
    /// NaN (from an infinite moment) has no code of its own; it takes zero's.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float finite_or_zero(typename L::Float x) {
        return L::select(is_nan<L>(x), L::broadcast(0.0F), x);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt floor_to_integer(typename L::Float x) {
        const auto y = finite_or_zero<L>(x);
        const auto towards_zero = L::truncate(y);
        // One less where truncation went up, that is for negative fractions.
        const auto went_up = L::less(y, L::to_float(towards_zero));
        return towards_zero - L::select_bits(went_up, L::broadcast_bits(1U), L::broadcast_bits(0U));
    }
};

}  // namespace flashoptim
