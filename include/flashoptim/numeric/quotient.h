// Correctly rounded quotients by a divisor that serves many, without a division for each: a product with the reciprocal, put
// right by the remainder (Markstein 1990; Muller et al., Handbook of Floating-Point Arithmetic, 2nd ed., section 4.7). Lanes say
// with kHasFastFma whether that pays; the others divide. The bits are those of the division.
#pragma once

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim {

/// x / d from 1/d rounded to nearest, for d in [2^-40, 2^90]. Right for an |x| in [2^-90, 2^90] whose quotient is at least 2^-120,
/// and for zero but for its sign; otherwise the quotient is tiny too. One step leaves an error of at most one unit in the last place, from which the
/// second is exact.
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

/// A divisor of one step. Where its reciprocal is 0 it is divided by.
struct StepDivisor {
    float value = 1.0F;
    float reciprocal = 1.0F;

    StepDivisor() = default;
    explicit FLASHOPTIM_INLINE StepDivisor(float d)
        : value(d), reciprocal(d >= 0x1p-30F && d <= 0x1p30F ? ScalarLanes::divide(1.0F, d) : 0.0F) {}
};

template <class L>
FLASHOPTIM_INLINE typename L::Float quotient(typename L::Float x, const StepDivisor& d) {
    if constexpr (L::kHasFastFma) {
        // Zero is neither tiny nor huge.
        const auto below = (L::bits(x) & kMagnitudeBits) - 1U;
        const auto tiny = L::less_bits(below, L::broadcast_bits(0x12800000U - 1U));  // 2^-90
        const auto huge = L::less_bits(L::broadcast_bits(0x6c800000U - 1U), below);  // 2^90
        const auto zero = L::equal_bits(below, L::broadcast_bits(0xffffffffU));
        const auto unfit = L::either(tiny, L::both(huge, L::negate(zero)));
        if (d.reciprocal != 0.0F && !L::any(unfit)) [[likely]] {
            return with_sign<L>(corrected_quotient<L>(x, L::broadcast(d.value), L::broadcast(d.reciprocal)),
                                x);
        }
    }
    return L::divide(x, L::broadcast(d.value));
}

}  // namespace flashoptim
