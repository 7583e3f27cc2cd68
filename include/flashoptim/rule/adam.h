// Adam (Kingma and Ba 2015, weight decay as an L2 term of the gradient) and AdamW (Loshchilov and Hutter
// 2019, decoupled weight decay). This file does not know how moments or weights are stored.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/rule/rules.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Formats with kCarriesScaled carry the moments as m/(1-b1) and v/(1-b2).
struct AdamRule {
    using Moments = MomentList<MomentKind::kSigned, MomentKind::kSquared>;
    static constexpr bool kDividesMoments = false;
    /// The direction is next.value[0] / fma(next.root[1], root_scale, epsilon). Where both moments are in
    /// range, a GPU may then divide without range checks (CudaUnguardedLanes).
    static constexpr bool kDividesFirstByRootOfSecond = true;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float effective_gradient(typename L::Float g, typename L::Float w,
                                                                  const StepScalars& k) {
        return add_l2<L>(g, w, k);
    }

    /// m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w = w (1 - lr wd) - lr (m/bc1) / (sqrt(v/bc2) + eps)
    template <class L, class Format>
    static FLASHOPTIM_INLINE typename L::Float direction(typename L::Float g,
                                                         const OldMoments<L, Format, AdamRule>& old,
                                                         NewMoments<L, AdamRule>& next,
                                                         const StepScalars& k) {
        auto new_first = g;
        auto new_second = g * g;
        if constexpr (!Format::kCarriesScaled) {
            new_first = g * k.moment[0].gain;
            new_second = new_second * k.moment[1].gain;
        }
        next.value[0] = old.template at<0>().plus(new_first);
        next.value[1] = old.template at<1>().plus(new_second);
        return over_root<L>(next.value[0], next.value[1], next.root[1], k);
    }

    /// mean / (sqrt(squares) * root_scale + epsilon), clamped. Writes sqrt(squares) to `root`.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float over_root(typename L::Float mean, typename L::Float squares,
                                                         typename L::Float& root, const StepScalars& k) {
        root = L::sqrt(squares);
        const auto denominator = L::fma(root, L::broadcast(k.root_scale), L::broadcast(k.epsilon));
        return limited_quotient<L>(mean, denominator, L::broadcast(k.update_limit));
    }
    /// Epsilon in fp32, at least the smallest normal number.
    static FLASHOPTIM_INLINE float epsilon_of(const Hyperparameters& h) {
        const auto epsilon = static_cast<float>(h.epsilon);
        return epsilon < 0x1p-126F ? 0x1p-126F : epsilon;
    }

    /// a / d, its magnitude clamped to `limit`. d is not negative.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float limited_quotient(typename L::Float a, typename L::Float d,
                                                                typename L::Float limit) {
        if constexpr (requires { L::limited_quotient(a, d, limit); }) {
            return L::limited_quotient(a, d, limit);
        } else {
            return L::smaller_magnitude(L::divide(a, d), limit);
        }
    }

    /// The scalars of step t (1 in the first step).
    template <class Format>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t t, Decay decay) {
        const double bias_correction1 = 1.0 - power(h.beta1, t);
        const double bias_correction2 = 1.0 - power(h.beta2, t);
        // Carried moments are m/carry1 and v/carry2.
        const double carry1 = carry_of<Format>(h.beta1), carry2 = carry_of<Format>(h.beta2);
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate * carry1 / bias_correction1);
        set_decay(k, h, decay);
        k.root_scale = static_cast<float>(double_sqrt(carry2 / bias_correction2));
        k.epsilon = epsilon_of(h);
        k.update_limit = static_cast<float>(largest_update(h, t) * (bias_correction1 / carry1));
        k.moment[0] = Format::Signed::scalars(carried_decay<Format>(h.beta1), 1.0 - h.beta1, carry1);
        k.moment[1] = Format::Squared::scalars(carried_decay<Format>(h.beta2), 1.0 - h.beta2, carry2);
        return k;
    }

    /// The largest |m/bc1| / sqrt(v/bc2) that exact moments can reach in step t. The Cauchy-Schwarz
    /// inequality gives (1-b1)/sqrt(1-b2) sqrt(S) sqrt(bc2)/bc1, with S = sum over k < t of (b1^2/b2)^k. If
    /// the infinite sum diverges (b1^2 >= b2), the sum stops at 64 terms. b2 = 0 has no bound.
    static FLASHOPTIM_INLINE double largest_update(const Hyperparameters& h, std::int64_t t) {
        if (h.beta2 == 0.0) return static_cast<double>(ScalarLanes::from_bits(kInfinityBits));
        const double ratio = h.beta1 * h.beta1 / h.beta2;
        double sum = 0.0;
        if (ratio < 1.0) {
            sum = (1.0 - power(ratio, t)) / (1.0 - ratio);
        } else {
            double term = 1.0;
            for (std::int64_t n = 0; n < (t < 64 ? t : 64); ++n, term *= ratio) sum += term;
        }
        const double bias_correction1 = 1.0 - power(h.beta1, t);
        const double bias_correction2 = 1.0 - power(h.beta2, t);
        return (1.0 - h.beta1) / double_sqrt(1.0 - h.beta2) * double_sqrt(sum) *
               double_sqrt(bias_correction2) / bias_correction1;
    }
};

/// Adam and AdamW in the order of operations of the paper's authors: each operation rounds once, without fma
/// and without the clamp.
struct PaperAdamRule {
    using Moments = AdamRule::Moments;
    static constexpr bool kDividesMoments = true;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float effective_gradient(typename L::Float g, typename L::Float w,
                                                                  const StepScalars& k) {
        return add_paper_l2<L>(g, w, k);
    }

    /// kFits promises that the new moments fit quotient() (numeric/quotient.h).
    template <class L, class Format, bool kFits = false>
    static FLASHOPTIM_INLINE void update(typename L::Float g, typename L::Float& w,
                                         const OldMoments<L, Format, PaperAdamRule>& old,
                                         NewMoments<L, PaperAdamRule>& next, const StepScalars& k) {
        next.value[0] = old.template at<0>().value() * k.beta1 + g * k.one_minus_beta1;
        next.value[1] = old.template at<1>().value() * k.beta2 + (g * g) * k.one_minus_beta2;
        next.root[1] = L::sqrt(next.value[1]);
        const auto numerator = quotient<L, kFits>(next.value[0], k.bias_correction1) * k.learning_rate;
        const auto denominator = L::sqrt(quotient<L, kFits>(next.value[1], k.bias_correction2)) + k.epsilon;
        w = w * k.weight_factor - L::divide(numerator, denominator);
    }

    template <class Format>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t t, Decay decay) {
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate);
        set_paper_decay(k, h, decay);
        k.epsilon = static_cast<float>(h.epsilon);
        k.beta1 = static_cast<float>(h.beta1);
        k.beta2 = static_cast<float>(h.beta2);
        k.one_minus_beta1 = 1.0F - k.beta1;
        k.one_minus_beta2 = 1.0F - k.beta2;
        k.bias_correction1 = divisor_of(1.0F - static_cast<float>(power(static_cast<double>(k.beta1), t)));
        k.bias_correction2 = divisor_of(1.0F - static_cast<float>(power(static_cast<double>(k.beta2), t)));
        k.moment[0] = Format::Signed::scalars(1.0, 1.0, 1.0);
        k.moment[1] = Format::Squared::scalars(1.0, 1.0, 1.0);
        return k;
    }
};

template <>
struct KernelsOf<Rule::kAdam> : RuleKernels<AdamRule, PaperAdamRule> {};
template <>
struct KernelsOf<Rule::kAdamW> : KernelsOf<Rule::kAdam> {};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
