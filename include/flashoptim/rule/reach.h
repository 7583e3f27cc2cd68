// How large a mean of gradients can be beside the root of a mean of their squares. Rules bound their updates
// with it.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/rule/rules.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

FLASHOPTIM_INLINE double infinity() { return static_cast<double>(ScalarLanes::from_bits(kInfinityBits)); }

/// The sum over n < count of ratio^n, rounded up where it is not sure: near a ratio of 1 the quotient of the
/// geometric series loses its digits, so that each term counts as the largest.
FLASHOPTIM_INLINE double sum_of_powers(double ratio, std::int64_t count) {
    const double last = power(ratio, count), apart = 1.0 - ratio;
    const auto terms = static_cast<double>(count);
    const bool is_near = (apart < 0.0 ? -apart : apart) * terms < 1e-3;
    return is_near ? terms * (last > 1.0 ? last : 1.0) : (1.0 - last) / apart;
}

/// The largest |sum over n < t of gain beta^n g(t-n)| / sqrt(v/bc2) in step t, where v is the mean of squares
/// with the decay beta2 and bc2 its bias correction. By the Cauchy-Schwarz inequality it is
/// gain sqrt(sum over n < t of (beta^2/beta2)^n) sqrt(bc2) / sqrt(1-beta2). Infinite for beta2 = 0.
FLASHOPTIM_INLINE double reach_of_mean(double gain, double beta, double beta2, std::int64_t t) {
    if (beta2 == 0.0) return infinity();
    const double bias_correction2 = 1.0 - power(beta2, t);
    return gain / double_sqrt(1.0 - beta2) * double_sqrt(sum_of_powers(beta * beta / beta2, t)) *
           double_sqrt(bias_correction2);
}

/// A bound in fp32; infinite if it is beyond fp32's range or not a number.
FLASHOPTIM_INLINE float rounded_limit(double limit) {
    return limit < 0x1p127 ? static_cast<float>(limit) : ScalarLanes::from_bits(kInfinityBits);
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
