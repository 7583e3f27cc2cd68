// Lion (Chen et al. 2023, algorithm 2): the sign of an interpolated momentum, with decoupled weight decay.
// This file does not know how moments or weights are stored.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/rule/rules.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// -1, 0 or 1; 0 for a NaN.
template <class L>
FLASHOPTIM_INLINE typename L::Float sign_of(typename L::Float x) {
    const auto zero = L::broadcast(0.0F);
    const auto negative_or_zero = L::select(L::less(x, zero), L::broadcast(-1.0F), zero);
    return L::select(L::less(zero, x), L::broadcast(1.0F), negative_or_zero);
}

struct LionRule : GradientWithoutDecay {
    using Moments = MomentList<MomentKind::kSigned>;
    static constexpr bool kDividesMoments = false;

    /// c = b1 m + (1-b1) g;  w = w (1 - lr wd) - lr sign(c);  m = b2 m + (1-b2) g
    template <class L, class Format>
    static FLASHOPTIM_INLINE typename L::Float direction(typename L::Float g,
                                                         const OldMoments<L, Format, LionRule>& old,
                                                         NewMoments<L, LionRule>& next,
                                                         const StepScalars& k) {
        const auto m = old.template at<0>().value();
        const auto c = L::fma(m, L::broadcast(k.beta1), g * k.one_minus_beta1);
        next.value[0] = L::fma(m, L::broadcast(k.beta2), g * k.one_minus_beta2);
        return sign_of<L>(c);
    }

    template <class Format>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t /*t*/, Decay decay) {
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate);
        set_decay(k, h, decay);
        k.beta1 = static_cast<float>(h.beta1);
        k.beta2 = static_cast<float>(h.beta2);
        k.one_minus_beta1 = static_cast<float>(1.0 - h.beta1);
        k.one_minus_beta2 = static_cast<float>(1.0 - h.beta2);
        k.moment[0] = Format::Signed::scalars(1.0, 1.0, 1.0);
        return k;
    }
};

/// Lion in the order of operations of the paper's authors.
struct PaperLionRule : GradientWithoutDecay {
    using Moments = LionRule::Moments;
    static constexpr bool kDividesMoments = false;

    template <class L, class Format>
    static FLASHOPTIM_INLINE void update(typename L::Float g, typename L::Float& w,
                                         const OldMoments<L, Format, PaperLionRule>& old,
                                         NewMoments<L, PaperLionRule>& next, const StepScalars& k) {
        const auto m = old.template at<0>().value();
        const auto c = m * k.beta1 + g * k.one_minus_beta1;
        next.value[0] = m * k.beta2 + g * k.one_minus_beta2;
        w = w * k.weight_factor - sign_of<L>(c) * k.learning_rate;
    }

    template <class Format>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t /*t*/, Decay decay) {
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate);
        set_paper_decay(k, h, decay);
        k.beta1 = static_cast<float>(h.beta1);
        k.beta2 = static_cast<float>(h.beta2);
        k.one_minus_beta1 = 1.0F - k.beta1;
        k.one_minus_beta2 = 1.0F - k.beta2;
        k.moment[0] = Format::Signed::scalars(1.0, 1.0, 1.0);
        return k;
    }
};

template <>
struct KernelsOf<Rule::kLion> : RuleKernels<LionRule, PaperLionRule> {};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
