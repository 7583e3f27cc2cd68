// AdEMAMix (Pagliardini, Ablin and Grangier 2024, arXiv 2409.03137, in the form of its authors' code): AdamW
// with a second, slower mean of the gradients beside the first. This file does not know how moments or
// weights are stored.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/numeric/logarithm.h"
#include "flashoptim/rule/adam.h"
#include "flashoptim/rule/reach.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Moments: m1 of beta1, v of beta2, m2 of beta3. Formats with kCarriesScaled carry m1/(1-b1) and v/(1-b2).
struct AdemamixRule : GradientWithoutDecay {
    using Moments = MomentList<MomentKind::kSigned, MomentKind::kSquared, MomentKind::kSlow>;
    static constexpr bool kDividesMoments = false;

    /// m1 = b1 m1 + (1-b1) g;  v = b2 v + (1-b2) g^2;  m2 = b3 m2 + (1-b3) g;
    /// w = w (1 - lr wd) - lr (m1/bc1 + alpha m2) / (sqrt(v/bc2) + eps)
    template <class L, class Format>
    static FLASHOPTIM_INLINE typename L::Float direction(typename L::Float g,
                                                         const OldMoments<L, Format, AdemamixRule>& old,
                                                         NewMoments<L, AdemamixRule>& next,
                                                         const StepScalars& k) {
        auto new_fast = g;
        auto new_squared = g * g;
        if constexpr (!Format::kCarriesScaled) {
            new_fast = g * k.moment[0].gain;
            new_squared = new_squared * k.moment[1].gain;
        }
        next.value[0] = old.template at<0>().plus(new_fast);
        next.value[1] = old.template at<1>().plus(new_squared);
        next.value[2] = old.template at<2>().plus(g * k.moment[2].gain);
        const auto mixed = L::fma(next.value[2], L::broadcast(k.mixed_weight), next.value[0]);
        return AdamRule::over_root<L>(mixed, next.value[1], next.root[1], k);
    }

    /// The scalars of step t (1 in the first step).
    template <class Format>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t t, Decay decay) {
        const double bias_correction1 = 1.0 - power(h.beta1, t);
        const double bias_correction2 = 1.0 - power(h.beta2, t);
        const double beta3 = beta3_of(h, t), alpha = alpha_of(h, t);
        // Carried moments are m1/carry1 and v/carry2.
        const double carry1 = carry_of<Format>(h.beta1), carry2 = carry_of<Format>(h.beta2);
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate * carry1 / bias_correction1);
        set_decay(k, h, decay);
        k.mixed_weight = static_cast<float>(alpha * bias_correction1 / carry1);
        k.root_scale = static_cast<float>(double_sqrt(carry2 / bias_correction2));
        k.epsilon = AdamRule::epsilon_of(h);
        k.update_limit = rounded_limit(largest_update(h, t) * (bias_correction1 / carry1));
        k.moment[0] = Format::Signed::scalars(carried_decay<Format>(h.beta1), 1.0 - h.beta1, carry1);
        k.moment[1] = Format::Squared::scalars(carried_decay<Format>(h.beta2), 1.0 - h.beta2, carry2);
        k.moment[2] = Format::Slow::scalars(beta3, 1.0 - beta3, 1.0);
        return k;
    }

    /// alpha in step t: in alpha_warmup steps linearly from 0 to its value.
    static FLASHOPTIM_INLINE double alpha_of(const Hyperparameters& h, std::int64_t t) {
        const auto step = static_cast<double>(t);
        return step < h.alpha_warmup ? step / h.alpha_warmup * h.alpha : h.alpha;
    }
    /// beta3 in step t: in beta3_warmup steps from beta1 to its value, linearly in its half-life. The 1e-8 is
    /// the authors'.
    static FLASHOPTIM_INLINE double beta3_of(const Hyperparameters& h, std::int64_t t) {
        const auto step = static_cast<double>(t);
        if (!(step < h.beta3_warmup)) return h.beta3;
        constexpr double kLogHalf = -0x1.62e42fefa39efp-1;
        const auto half_life = [](double beta) { return kLogHalf / natural_logarithm(beta + 1e-8) - 1.0; };
        const double done = step / h.beta3_warmup;
        const double now = (1.0 - done) * half_life(h.beta1) + done * half_life(h.beta3);
        return exponential(kLogHalf / (now + 1.0));
    }

    /// The largest |m1/bc1 + alpha m2| / sqrt(v/bc2) that exact moments can reach in step t: the sum of what
    /// both terms can reach. Of all steps so far the least beta3 bounds what a gradient adds to m2, the
    /// largest how slowly that decays. beta2 = 0 has no bound.
    static FLASHOPTIM_INLINE double largest_update(const Hyperparameters& h, std::int64_t t) {
        const double beta3 = beta3_of(h, t);
        const double first = beta3_of(h, 1), highest = beta3 > first ? beta3 : first;
        const double lowest = beta3 > first ? first : beta3;
        const double bias_correction1 = 1.0 - power(h.beta1, t);
        const double fast = reach_of_mean(1.0 - h.beta1, h.beta1, h.beta2, t) / bias_correction1;
        return fast + h.alpha * reach_of_mean(1.0 - lowest, highest, h.beta2, t);
    }
};

template <>
struct KernelsOf<Rule::kAdEMAMix> : RuleKernels<AdemamixRule, void> {};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
