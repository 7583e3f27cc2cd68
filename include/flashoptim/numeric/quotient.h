// Correctly rounded quotients by a divisor that is used often, without a division for each: a product with
// the reciprocal, corrected by the remainder (Markstein 1990; Muller et al., Handbook of Floating-Point
// Arithmetic, 2nd ed., section 4.7). Lanes with kHasFastFma use it; the others divide. The bits are those of
// the division.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim {

/// A divisor of one step and its reciprocal. If the reciprocal is 0, the divisor is used.
struct StepDivisor {
    float value = 1.0F;
    float reciprocal = 1.0F;
};

}  // namespace flashoptim

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Between these bounds remainders are not subnormal and products do not overflow.
constexpr float kSmallestDividend = 0x1p-100F, kLargestDividend = 0x1p90F;

/// x / d from 1/d rounded to nearest, for d in [2^-40, 2^90]. Right for an |x| in [kSmallestDividend,
/// kLargestDividend] whose quotient is at least 2^-120, and for zero but for its sign; otherwise the quotient
/// is tiny too. One step leaves an error of at most one unit in the last place, from which the second is
/// exact.
template <class L>
FLASHOPTIM_INLINE typename L::Float corrected_quotient(typename L::Float x, typename L::Float d,
                                                       typename L::Float reciprocal) {
    const auto near = x * reciprocal;
    const auto nearer = L::fma(L::fma(-d, near, x), reciprocal, near);
    return L::fma(L::fma(-d, nearer, x), reciprocal, nearer);
}

/// n / divisor for integers of at most 15 bits and their sign; tests/format tries them all.
template <class L>
FLASHOPTIM_INLINE typename L::Float integer_quotient(typename L::Float n, float divisor) {
    if constexpr (L::kHasFastFma) {
        const auto reciprocal = L::broadcast(1.0F / divisor);
        const auto near = n * reciprocal;
        return L::fma(L::fma(L::broadcast(-divisor), near, n), reciprocal, near);
    } else {
        return L::divide(n, L::broadcast(divisor));
    }
}

/// The divisor `d` with its reciprocal.
FLASHOPTIM_INLINE StepDivisor divisor_of(float d) {
    StepDivisor divisor;
    divisor.value = d;
    divisor.reciprocal = d >= 0x1p-30F && d <= 0x1p30F ? ScalarLanes::divide(1.0F, d) : 0.0F;
    return divisor;
}

/// Of the magnitude's bits, so ordered that zero, which is neither tiny nor huge, comes last.
template <class L>
FLASHOPTIM_INLINE typename L::UInt dividend_order(typename L::Float x) {
    return (L::bits(x) & kMagnitudeBits) - 1U;
}

/// `kFits`: x is known to be zero or in [kSmallestDividend, kLargestDividend].
template <class L, bool kFits = false>
FLASHOPTIM_INLINE typename L::Float quotient(typename L::Float x, const StepDivisor& d) {
    if constexpr (L::kHasFastFma) {
        const auto corrected = [&]() __attribute__((always_inline)) {
            return with_sign<L>(corrected_quotient<L>(x, L::broadcast(d.value), L::broadcast(d.reciprocal)),
                                x);
        };
        if (d.reciprocal != 0.0F) [[likely]] {
            if constexpr (kFits) return corrected();
            const auto order = dividend_order<L>(x);
            const auto in_order = [](float bound) __attribute__((always_inline)) {
                return dividend_order<L>(L::broadcast(bound));
            };
            const auto tiny = L::less_bits(order, in_order(kSmallestDividend));
            const auto huge = L::less_bits(in_order(kLargestDividend), order);
            const auto zero = L::equal_bits(order, L::broadcast_bits(0xffffffffU));
            if (!L::any(L::either(tiny, L::both(huge, L::negate(zero))))) return corrected();
        }
    }
    return L::divide(x, L::broadcast(d.value));
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
