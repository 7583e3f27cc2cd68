// Correctly rounded quotients by a divisor that is used many times. A product with the reciprocal, corrected
// by the remainder, replaces each division (Markstein 1990; Muller et al., Handbook of Floating-Point
// Arithmetic, 2nd ed., section 4.7). Lanes with kHasFastFma use it; the others divide. Both give the same
// bits.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim {

/// A divisor of one step and its reciprocal. A reciprocal of 0 says that the quotient must be divided.
struct StepDivisor {
    float value = 1.0F;
    float reciprocal = 1.0F;
};

}  // namespace flashoptim

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Bounds of |x| in corrected_quotient(): no remainder is subnormal and no product overflows.
constexpr float kSmallestDividend = 0x1p-100F, kLargestDividend = 0x1p90F;

/// x / d, where `reciprocal` is 1/d rounded to nearest and d is in [2^-40, 2^90]. The result is correctly
/// rounded if |x| is in [kSmallestDividend, kLargestDividend] and the quotient is at least 2^-120. A smaller
/// quotient stays tiny but may be rounded wrongly. Zero gives zero, perhaps of the wrong sign. The first
/// correction leaves an error of at most one unit in the last place; the second makes the result exact.
template <class L>
FLASHOPTIM_INLINE typename L::Float corrected_quotient(typename L::Float x, typename L::Float d,
                                                       typename L::Float reciprocal) {
    const auto near = x * reciprocal;
    const auto nearer = L::fma(L::fma(-d, near, x), reciprocal, near);
    return L::fma(L::fma(-d, nearer, x), reciprocal, nearer);
}

/// n / divisor, correctly rounded, for integers of at most 15 bits and a sign; tests/format tries them all.
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

/// The divisor d with its reciprocal, or with 0 if corrected_quotient() cannot be used for d.
FLASHOPTIM_INLINE StepDivisor divisor_of(float d) {
    StepDivisor divisor;
    divisor.value = d;
    divisor.reciprocal = d >= 0x1p-30F && d <= 0x1p30F ? ScalarLanes::divide(1.0F, d) : 0.0F;
    return divisor;
}

/// An integer that orders magnitudes, with zero last: zero must not count as tiny, since its quotient is
/// exact.
template <class L>
FLASHOPTIM_INLINE typename L::UInt dividend_order(typename L::Float x) {
    return (L::bits(x) & kMagnitudeBits) - 1U;
}

/// x / d, correctly rounded. kFits promises that |x| is 0 or in [kSmallestDividend, kLargestDividend].
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
