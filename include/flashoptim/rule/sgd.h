// SGD with momentum, dampening and Nesterov's look-ahead (as torch.optim.SGD; Sutskever et al. 2013), with weight decay in
// the gradient (SGD) or apart from it (SGDW). Nothing here knows how moments or weights are stored.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/rule/hyperparameters.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

template <bool kMomentum>
struct SgdRule {
    static constexpr bool kHasFirst = kMomentum, kHasSecond = false, kDividesMoments = false;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float effective_gradient(typename L::Float g, typename L::Float w,
                                                                  const StepScalars& k) {
        return add_l2<L>(g, w, k);
    }

    /// m = mu m + (1-dampening) g, or g where no buffer exists yet;  w = w (1 - lr wd) - lr m, Nesterov: lr (g + mu m)
    template <class L, class Moments>
    static FLASHOPTIM_INLINE void update(typename L::Float g, typename L::Float& w,
                                         const typename Moments::template OldFirst<L>& old_first,
                                         const typename Moments::template OldSecond<L>& /*old_second*/,
                                         typename L::Float& first, typename L::Float& /*second*/,
                                         typename L::Float& /*root*/, const StepScalars& k) {
        auto step = g;
        if constexpr (kMomentum) {
            first = k.has_momentum ? old_first.plus(g * k.first.gain) : g;
            step = k.nesterov ? L::fma(first, L::broadcast(k.beta1), g) : first;
        }
        w = L::fma(step, L::broadcast(-k.learning_rate), w * k.weight_factor);
    }

    template <class Moments>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t /*t*/, Decay decay) {
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate);
        set_decay(k, h, decay);
        k.beta1 = static_cast<float>(h.momentum);
        k.nesterov = h.nesterov;
        k.first = Moments::first_scalars(h.momentum, 1.0 - h.dampening, 1.0);
        return k;
    }
};

/// The same in the order of operations of the paper's authors, who dampen from the first step on.
template <bool kMomentum>
struct PaperSgdRule {
    static constexpr bool kHasFirst = kMomentum, kHasSecond = false, kDividesMoments = false;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float effective_gradient(typename L::Float g, typename L::Float w,
                                                                  const StepScalars& k) {
        return add_paper_l2<L>(g, w, k);
    }

    template <class L, class Moments>
    static FLASHOPTIM_INLINE void update(typename L::Float g, typename L::Float& w,
                                         const typename Moments::template OldFirst<L>& old_first,
                                         const typename Moments::template OldSecond<L>& /*old_second*/,
                                         typename L::Float& first, typename L::Float& /*second*/,
                                         typename L::Float& /*root*/, const StepScalars& k) {
        auto step = g;
        if constexpr (kMomentum) {
            first = old_first.value() * k.beta1 + g * k.one_minus_beta1;
            step = k.nesterov ? g + first * k.beta1 : first;
        }
        w = w * k.weight_factor - step * k.learning_rate;
    }

    template <class Moments>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t /*t*/, Decay decay) {
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate);
        // Without momentum the authors call torch's own operators, which round the decay's factor from double.
        if constexpr (kMomentum) {
            set_paper_decay(k, h, decay);
        } else {
            set_decay(k, h, decay);
        }
        k.beta1 = static_cast<float>(h.momentum);
        k.one_minus_beta1 = static_cast<float>(1.0 - h.dampening);
        k.nesterov = h.nesterov;
        k.first = Moments::first_scalars(1.0, 1.0, 1.0);
        return k;
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
