// An old moment as a rule reads it in any format, and the constants that a format takes from a rule.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim {

/// The constants of one moment in one step. Carried units are what a rule computes with; see kCarriesScaled.
struct MomentScalars {
    float factor = 1.0F;   // of an old moment, beside the group's scale: its decay
    float gain = 1.0F;     // of what is new
    float measure = 1.0F;  // carried units times this are the moment itself
    float encode = 1.0F;   // numerator of a group's encoding factor
};

}  // namespace flashoptim

namespace flashoptim::inline FLASHOPTIM_ISA {

/// An old moment, `unit * factor`; the factor holds the group's scale and the decay.
template <class L>
struct OldMoment {
    typename L::Float unit;
    typename L::Float factor;

    FLASHOPTIM_INLINE typename L::Float plus(typename L::Float x) const { return L::fma(unit, factor, x); }
    FLASHOPTIM_INLINE typename L::Float value() const { return unit * factor; }
};

/// An old second moment that is kept as its root, `unit * factor`.
template <class L>
struct OldRootMoment {
    typename L::Float unit;
    typename L::Float factor;

    FLASHOPTIM_INLINE typename L::Float plus(typename L::Float x) const {
        const auto r = unit * factor;
        return L::fma(r, r, x);
    }
    FLASHOPTIM_INLINE typename L::Float value() const {
        const auto r = unit * factor;
        return r * r;
    }
};

/// IEEE square root of a double, on host and device.
FLASHOPTIM_INLINE double double_sqrt(double x) {
#if defined(__CUDA_ARCH__)
    return __dsqrt_rn(x);
#else
    return __builtin_sqrt(x);
#endif
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
