// Moments as the rules see them, whatever their format, and what a format needs of the rule's constants.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <type_traits>

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim {

/// Moments that a rule may have.
constexpr int kMaxMoments = 4;

/// What a moment is a mean of.
enum class MomentKind : std::uint8_t {
    kSigned,   ///< of gradients, of either sign
    kSquared,  ///< of squares: never negative
};

/// The kinds of a rule's moments, in the order of its table row.
template <MomentKind... kKinds>
struct MomentList {
    static constexpr int kCount = sizeof...(kKinds);
    static constexpr MomentKind kind(int n) {
        constexpr MomentKind kAll[] = {kKinds..., MomentKind::kSigned};
        return kAll[n];
    }
    /// The same where device code may not call it.
    template <int n>
    static constexpr MomentKind kKind = kind(n);
};

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

/// The old moments of rule R in format M as its update sees them: `at<n>()` is moment n.
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
    /// Never called: compilers look for it where there are no moments.
    template <int n>
    OldMoment<L>& at() const;
};

/// What an update makes of them. A rule sets `value`, and of a squared moment `root`, its square root, too.
template <class L, class R>
struct NewMoments {
    static constexpr int kSize = R::Moments::kCount > 0 ? R::Moments::kCount : 1;
    typename L::Float value[kSize] = {};
    typename L::Float root[kSize] = {};
};

/// The number of a moment as a type, for functions of any number.
template <int kNumber>
struct MomentNumber {
    FLASHOPTIM_INLINE constexpr operator int() const { return kNumber; }
};
/// Calls function(n), n a MomentNumber, for each moment of rule R.
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
