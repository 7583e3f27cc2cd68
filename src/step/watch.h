// How the fast kernel detects a block that is not ordinary and must be stepped by the reference kernel.
#pragma once

#include "flashoptim/numeric/quotient.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Sums that become infinite or NaN if any added value is not ordinary. They are checked once for many
/// values.
template <class L, class R, class W>
struct Watch {
    using Float = typename L::Float;
    using UInt = typename L::UInt;

    Float weights = L::broadcast(1.0F), gradients = L::broadcast(1.0F);
    UInt smallest = L::broadcast_bits(0xffffffffU), largest{};  // of the dividends of rule R

    FLASHOPTIM_INLINE void weight(Float w) {
        weights = L::fma(w, L::broadcast(0x1p126F / W::kOrdinary * 4.0F), weights);
    }
    /// The sum overflows if any |g| >= 2^48.
    FLASHOPTIM_INLINE void gradient(Float g) {
        const auto scaled = g * L::broadcast(0x1p16F);
        gradients = L::fma(scaled, scaled, gradients);
    }
    FLASHOPTIM_INLINE void dividend(Float x) {
        smallest = L::min_bits(smallest, dividend_order<L>(x));
        largest = L::max_bits(largest, L::bits(x) & kMagnitudeBits);
    }
    [[nodiscard]] FLASHOPTIM_INLINE bool is_quiet() const {
        const auto infinity = L::from_bits(L::broadcast_bits(kInfinityBits));
        auto quiet = L::both(L::less(absolute<L>(weights), infinity), L::less(gradients, infinity));
        if constexpr (R::kDividesMoments) {
            const auto too_small = L::less_bits(smallest, dividend_order<L>(L::broadcast(kSmallestDividend)));
            const auto too_large = L::less_bits(L::bits(L::broadcast(kLargestDividend)), largest);
            quiet = L::both(quiet, L::negate(L::either(too_small, too_large)));
        }
        return !L::any(L::negate(quiet));
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
