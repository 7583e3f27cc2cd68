// SGD with momentum, dampening and Nesterov momentum (as torch.optim.SGD; Sutskever et al. 2013). Weight
// decay is an L2 term of the gradient (SGD) or decoupled (SGDW). This file does not know how moments or
// weights are stored.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <type_traits>

#include "flashoptim/rule/rules.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// SGD with a momentum buffer (kMomentum) or without one.
template <bool kMomentum>
using SgdMoments = std::conditional_t<kMomentum, MomentList<MomentKind::kSigned>, MomentList<>>;

template <bool kMomentum>
struct SgdRule {
    using Moments = SgdMoments<kMomentum>;
    static constexpr bool kDividesMoments = false;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float effective_gradient(typename L::Float g, typename L::Float w,
                                                                  const StepScalars& k) {
        return add_l2<L>(g, w, k);
    }

    /// m = mu m + (1-dampening) g, or m = g where no buffer exists yet;  w = w (1 - lr wd) - lr m, with
    /// Nesterov momentum w = w (1 - lr wd) - lr (g + mu m)
    template <class L, class Format>
    static FLASHOPTIM_INLINE typename L::Float direction(typename L::Float g,
                                                         const OldMoments<L, Format, SgdRule>& old,
                                                         NewMoments<L, SgdRule>& next, const StepScalars& k) {
        if constexpr (kMomentum) {
            next.value[0] = k.has_momentum ? old.template at<0>().plus(g * k.moment[0].gain) : g;
            return k.nesterov ? L::fma(next.value[0], L::broadcast(k.beta1), g) : next.value[0];
        } else {
            return g;
        }
    }

    template <class Format>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t /*t*/, Decay decay) {
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate);
        set_decay(k, h, decay);
        k.beta1 = static_cast<float>(h.momentum);
        k.nesterov = h.nesterov;
        k.moment[0] = Format::Signed::scalars(h.momentum, 1.0 - h.dampening, 1.0);
        return k;
    }
};

/// SGD in the order of operations of the paper's authors, who apply dampening from the first step on.
template <bool kMomentum>
struct PaperSgdRule {
    using Moments = SgdMoments<kMomentum>;
    static constexpr bool kDividesMoments = false;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float effective_gradient(typename L::Float g, typename L::Float w,
                                                                  const StepScalars& k) {
        return add_paper_l2<L>(g, w, k);
    }

    template <class L, class Format>
    static FLASHOPTIM_INLINE void update(typename L::Float g, typename L::Float& w,
                                         const OldMoments<L, Format, PaperSgdRule>& old,
                                         NewMoments<L, PaperSgdRule>& next, const StepScalars& k) {
        auto step = g;
        if constexpr (kMomentum) {
            next.value[0] = old.template at<0>().value() * k.beta1 + g * k.one_minus_beta1;
            step = k.nesterov ? g + next.value[0] * k.beta1 : next.value[0];
        }
        w = w * k.weight_factor - step * k.learning_rate;
    }

    template <class Format>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t /*t*/, Decay decay) {
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate);
        // Without momentum the authors call torch's own operators, which round the decay factor once, from
        // double.
        if constexpr (kMomentum) {
            set_paper_decay(k, h, decay);
        } else {
            set_decay(k, h, decay);
        }
        k.beta1 = static_cast<float>(h.momentum);
        k.one_minus_beta1 = static_cast<float>(1.0 - h.dampening);
        k.nesterov = h.nesterov;
        k.moment[0] = Format::Signed::scalars(1.0, 1.0, 1.0);
        return k;
    }
};

template <>
struct KernelsOf<Rule::kSGD>
    : RuleKernels<SgdRule<true>, PaperSgdRule<true>, SgdRule<false>, PaperSgdRule<false>> {};
template <>
struct KernelsOf<Rule::kSGDW> : KernelsOf<Rule::kSGD> {};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
