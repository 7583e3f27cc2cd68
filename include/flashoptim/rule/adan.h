// Adan (Xie et al. 2022, arXiv 2208.06677, in the form of its authors' code): Nesterov momentum from the
// difference to the last gradient. This file does not know how moments or weights are stored.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/rule/adam.h"
#include "flashoptim/rule/reach.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Moments: m of beta1, n of beta3, d of beta2, and the last gradient. The betas are torch's: decay rates.
/// Formats with kCarriesScaled carry m/(1-b1), n/(1-b3) and d/(1-b2).
struct AdanRule : GradientWithoutDecay {
    using Moments =
        MomentList<MomentKind::kSigned, MomentKind::kSquared, MomentKind::kSigned, MomentKind::kGradient>;
    static constexpr bool kDividesMoments = false;

    /// diff = g - last g, 0 where there is none;  m = b1 m + (1-b1) g;  d = b2 d + (1-b2) diff;
    /// n = b3 n + (1-b3) (g + b2 diff)^2;  u = (m/bc1 + b2 d/bc2) / (sqrt(n/bc3) + eps);
    /// w = (w - lr u) / (1 + lr wd), with no_prox w = w (1 - lr wd) - lr u
    ///
    /// A bad gradient shows in the root of n: a kept gradient is at most 2^48 and a bad one at least that, so
    /// |g + b2 diff| >= |g| + b2 (|g| - |last g|) >= |g|.
    template <class L, class Format>
    static FLASHOPTIM_INLINE typename L::Float direction(typename L::Float g,
                                                         const OldMoments<L, Format, AdanRule>& old,
                                                         NewMoments<L, AdanRule>& next,
                                                         const StepScalars& k) {
        const auto difference = k.has_momentum ? g - old.template at<3>().unit : L::broadcast(0.0F);
        const auto ahead = L::fma(difference, L::broadcast(k.beta2), g);
        auto new_mean = g, new_difference = difference;
        auto new_squared = ahead * ahead;
        if constexpr (!Format::kCarriesScaled) {
            new_mean = g * k.moment[0].gain;
            new_squared = new_squared * k.moment[1].gain;
            new_difference = difference * k.moment[2].gain;
        }
        next.value[0] = old.template at<0>().plus(new_mean);
        next.value[1] = old.template at<1>().plus(new_squared);
        next.value[2] = old.template at<2>().plus(new_difference);
        next.value[3] = g;
        const auto mixed = L::fma(next.value[2], L::broadcast(k.mixed_weight), next.value[0]);
        return AdamRule::over_root<L>(mixed, next.value[1], next.root[1], k);
    }

    /// The scalars of step t (1 in the first step).
    template <class Format>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t t,
                                                 Decay table_decay) {
        const auto decay = h.no_prox ? Decay::kDecoupled : table_decay;
        const double bias_correction1 = 1.0 - power(h.beta1, t);
        const double bias_correction2 = 1.0 - power(h.beta2, t);
        const double bias_correction3 = 1.0 - power(h.beta3, t);
        // Carried moments are m/carry1, d/carry2 and n/carry3.
        const double carry1 = carry_of<Format>(h.beta1), carry2 = carry_of<Format>(h.beta2);
        const double carry3 = carry_of<Format>(h.beta3);
        StepScalars k;
        k.learning_rate =
            static_cast<float>(h.learning_rate * carry1 / bias_correction1 * proximal_factor(h, decay));
        set_decay(k, h, decay);
        k.beta2 = static_cast<float>(h.beta2);
        k.mixed_weight =
            static_cast<float>(h.beta2 * (carry2 / bias_correction2) * (bias_correction1 / carry1));
        k.root_scale = static_cast<float>(double_sqrt(carry3 / bias_correction3));
        k.epsilon = AdamRule::epsilon_of(h);
        k.update_limit = rounded_limit(largest_update(h, t) * (bias_correction1 / carry1));
        k.moment[0] = Format::Signed::scalars(carried_decay<Format>(h.beta1), 1.0 - h.beta1, carry1);
        k.moment[1] = Format::Squared::scalars(carried_decay<Format>(h.beta3), 1.0 - h.beta3, carry3);
        k.moment[2] = Format::Signed::scalars(carried_decay<Format>(h.beta2), 1.0 - h.beta2, carry2);
        k.moment[3] = Format::Gradient::scalars(1.0, 1.0, 1.0);
        return k;
    }

    /// The largest |m/bc1 + b2 d/bc2| / sqrt(n/bc3) that exact moments can reach in step t, or more.
    ///
    /// n is the mean of the squares of u = g + b2 diff. So g(t) = (u(t) + b2 g(t-1)) / (1+b2), and g = u in
    /// the first step. Weight each step with b3^(age/2), as n weights squares. That recursion then enlarges
    /// the Euclidean norm at most by G = (1+b2) / (1+b2 - b2/sqrt(b3)). There is no bound if the divisor is
    /// not positive. m is a mean of g, and b2 d a mean of u - g. reach_of_mean() bounds both.
    static FLASHOPTIM_INLINE double largest_update(const Hyperparameters& h, std::int64_t t) {
        if (h.beta3 == 0.0) return infinity();
        const double divisor = 1.0 + h.beta2 - h.beta2 / double_sqrt(h.beta3);
        if (!(divisor > 0.0)) return infinity();
        const double growth = (1.0 + h.beta2) / divisor;
        const double of_mean = reach_of_mean(1.0 - h.beta1, h.beta1, h.beta3, t) * growth;
        const double of_difference = reach_of_mean(1.0 - h.beta2, h.beta2, h.beta3, t) * (1.0 + growth);
        return of_mean / (1.0 - power(h.beta1, t)) + of_difference / (1.0 - power(h.beta2, t));
    }
};

template <>
struct KernelsOf<Rule::kAdan> : RuleKernels<AdanRule, void> {};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
