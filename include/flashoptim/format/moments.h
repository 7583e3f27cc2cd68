// Moments as the rules see them, whatever their format, and the constants that a rule gives to a format.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <type_traits>

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim {

/// Largest number of moments of a rule.
constexpr int kMaxMoments = 4;

/// What a moment is. The kind and the format decide how it is stored.
enum class MomentKind : std::uint8_t {
    kSigned,    ///< a mean of gradients: either sign
    kSquared,   ///< a mean of squared gradients: never negative
    kSlow,      ///< a mean of gradients over more steps than an 8-bit code can follow: either sign
    kGradient,  ///< no mean: the last gradient itself
};

/// The kinds of a rule's moments, in the order of its table row.
template <MomentKind... kKinds>
struct MomentList {
    static constexpr int kCount = sizeof...(kKinds);
    static constexpr MomentKind kind(int n) {
        constexpr MomentKind kAll[] = {kKinds..., MomentKind::kSigned};
        return kAll[n];
    }
    /// kind(n) as a constant, because device code may not call a host constexpr function.
    template <int n>
    static constexpr MomentKind kKind = kind(n);
    /// Whether one of the moments is the last gradient.
    static constexpr bool kKeepsGradient = ((kKinds == MomentKind::kGradient) || ...);
};

/// The constants of one moment in one step. A rule computes in carried units: m/(1-beta) where the format's
/// kCarriesScaled is set, else m.
struct MomentScalars {
    float factor = 1.0F;   // decay of the old moment, without the group's scale
    float gain = 1.0F;     // weight of the new gradient
    float measure = 1.0F;  // a moment is its carried value times this
    float encode = 1.0F;   // numerator of a group's encoding factor
};

}  // namespace flashoptim

namespace flashoptim::inline FLASHOPTIM_ISA {

/// An old moment after its decay: `unit * factor`. The factor is the group's scale times the decay.
template <class L>
struct OldMoment {
    typename L::Float unit;
    typename L::Float factor;

    FLASHOPTIM_INLINE typename L::Float plus(typename L::Float x) const { return L::fma(unit, factor, x); }
    FLASHOPTIM_INLINE typename L::Float value() const { return unit * factor; }
};

/// An old squared moment after its decay. Its root is stored, so the moment is (unit * factor)^2.
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

/// The old moments of rule R in format M, as the rule's update reads them. `at<n>()` is moment n.
template <class L, class M, class R, int kPlace = 0, bool kIsThere = (kPlace < R::Moments::kCount)>
struct OldMoments : OldMoments<L, M, R, kPlace + 1> {
    using Next = OldMoments<L, M, R, kPlace + 1>;
    typename M::template Of<R::Moments::kind(kPlace)>::template Old<L> moment{};

    template <int n>
    FLASHOPTIM_INLINE auto& at() {
        if constexpr (n == kPlace) {
            return moment;
        } else {
            return Next::template at<n>();
        }
    }
    template <int n>
    FLASHOPTIM_INLINE const auto& at() const {
        if constexpr (n == kPlace) {
            return moment;
        } else {
            return Next::template at<n>();
        }
    }
};
template <class L, class M, class R, int kPlace>
struct OldMoments<L, M, R, kPlace, false> {
    /// Never called. Compilers need the declaration for rules without moments.
    template <int n>
    OldMoment<L>& at() const;
};

/// The new moments. A rule sets `value` of each, and for a squared moment also `root`, its square root.
template <class L, class R>
struct NewMoments {
    static constexpr int kSize = R::Moments::kCount > 0 ? R::Moments::kCount : 1;
    typename L::Float value[kSize] = {};
    typename L::Float root[kSize] = {};
};

/// How format M stores a moment of a kind, from the classes that M names after the kinds.
template <class M, MomentKind kKind>
using MomentOf =
    std::conditional_t<kKind == MomentKind::kSquared, typename M::Squared,
                       std::conditional_t<kKind == MomentKind::kSlow, typename M::Slow,
                                          std::conditional_t<kKind == MomentKind::kGradient,
                                                             typename M::Gradient, typename M::Signed>>>;

/// The number of a moment as a type, so that a generic lambda can use it as a template argument.
template <int kNumber>
struct MomentNumber {
    FLASHOPTIM_INLINE constexpr operator int() const { return kNumber; }
};
/// Calls function(n) for each moment of rule R; n is a MomentNumber.
template <class R, class Function>
FLASHOPTIM_INLINE void for_each_moment(const Function& function) {
    if constexpr (R::Moments::kCount > 0) function(MomentNumber<0>());
    if constexpr (R::Moments::kCount > 1) function(MomentNumber<1>());
    if constexpr (R::Moments::kCount > 2) function(MomentNumber<2>());
    if constexpr (R::Moments::kCount > 3) function(MomentNumber<3>());
}

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
