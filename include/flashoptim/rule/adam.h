// Adam (Kingma and Ba 2015, L2 term in the gradient) and AdamW (Loshchilov and Hutter 2019, decoupled weight decay).
// Nothing here knows how moments or weights are stored.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include "flashoptim/rule/hyperparameters.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// A format may carry moments as m/(1-b1) and v/(1-b2) (Moments::kCarriesScaled).
struct AdamRule {
    static constexpr bool kHasFirst = true, kHasSecond = true, kDividesMoments = false;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float effective_gradient(typename L::Float g, typename L::Float w,
                                                                  const StepScalars& k) {
        return add_l2<L>(g, w, k);
    }

    /// m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w = w (1 - lr wd) - lr (m/bc1) / (sqrt(v/bc2) + eps)
    template <class L, class Moments>
    static FLASHOPTIM_INLINE void update(typename L::Float g, typename L::Float& w,
                                         const typename Moments::template OldFirst<L>& old_first,
                                         const typename Moments::template OldSecond<L>& old_second,
                                         typename L::Float& first, typename L::Float& second,
                                         typename L::Float& root, const StepScalars& k) {
        auto new_first = g;
        auto new_second = g * g;
        if constexpr (!Moments::kCarriesScaled) {
            new_first = g * k.first.gain;
            new_second = new_second * k.second.gain;
        }
        first = old_first.plus(new_first);
        second = old_second.plus(new_second);
        root = L::sqrt(second);
        const auto denominator = L::fma(root, L::broadcast(k.root_scale), L::broadcast(k.epsilon));
        const auto update = limited_quotient<L>(first, denominator, L::broadcast(k.update_limit));
        w = L::fma(update, L::broadcast(-k.learning_rate), w * k.weight_factor);
    }

    /// a / d with a magnitude of at most `limit`; d is not negative.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float limited_quotient(typename L::Float a, typename L::Float d,
                                                                typename L::Float limit) {
        if constexpr (requires { L::limited_quotient(a, d, limit); }) {
            return L::limited_quotient(a, d, limit);
        } else {
            return L::smaller_magnitude(L::divide(a, d), limit);
        }
    }

    /// The scalars of step `t` (1 in the first).
    template <class Moments>
    static FLASHOPTIM_INLINE StepScalars scalars(const Hyperparameters& h, std::int64_t t, Decay decay) {
        const double bias_correction1 = 1.0 - power(h.beta1, t);
        const double bias_correction2 = 1.0 - power(h.beta2, t);
        // Carried moments are m/carry1 and v/carry2.
        const double carry1 = Moments::kCarriesScaled ? 1.0 - h.beta1 : 1.0;
        const double carry2 = Moments::kCarriesScaled ? 1.0 - h.beta2 : 1.0;
        StepScalars k;
        k.learning_rate = static_cast<float>(h.learning_rate * carry1 / bias_correction1);
        set_decay(k, h, decay);
        k.root_scale = static_cast<float>(double_sqrt(carry2 / bias_correction2));
        const auto epsilon = static_cast<float>(h.epsilon);
        k.epsilon = epsilon < 0x1p-126F ? 0x1p-126F : epsilon;
        k.update_limit = static_cast<float>(largest_update(h, t) * (bias_correction1 / carry1));
        const double decay2 = Moments::kCarriesScaled ? h.beta2 / (1.0 - h.beta2) : h.beta2;
        const double decay1 = Moments::kCarriesScaled ? h.beta1 / (1.0 - h.beta1) : h.beta1;
        k.first = Moments::first_scalars(decay1, 1.0 - h.beta1, carry1);
        k.second = Moments::second_scalars(decay2, 1.0 - h.beta2, carry2);
        return k;
    }

    /// The largest |m/bc1| / sqrt(v/bc2) that exact moments can reach in step t, by the Cauchy-Schwarz inequality:
    /// (1-b1)/sqrt(1-b2) sqrt(S) sqrt(bc2)/bc1, S = sum over k < t of (b1^2/b2)^k. Where that sum has no limit (b1^2 >= b2)
    /// it stops at 64 terms; b2 = 0 has no bound.
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

/// The same in the order of operations of the paper's authors: one rounding each, no fma, no clamp.
struct PaperAdamRule {
    static constexpr bool kHasFirst = true, kHasSecond = true, kDividesMoments = true;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Float effective_gradient(typename L::Float g, typename L::Float w,
                                                                  const StepScalars& k) {
        return add_paper_l2<L>(g, w, k);
    }

    /// `kFits`: new moments are known to fit `quotient`.
    template <class L, class Moments, bool kFits = false>
    static FLASHOPTIM_INLINE void update(typename L::Float g, typename L::Float& w,
                                         const typename Moments::template OldFirst<L>& old_first,
                                         const typename Moments::template OldSecond<L>& old_second,
                                         typename L::Float& first, typename L::Float& second,
                                         typename L::Float& root, const StepScalars& k) {
        first = old_first.value() * k.beta1 + g * k.one_minus_beta1;
        second = old_second.value() * k.beta2 + (g * g) * k.one_minus_beta2;
        root = L::sqrt(second);
        const auto numerator = quotient<L, kFits>(first, k.bias_correction1) * k.learning_rate;
        const auto denominator = L::sqrt(quotient<L, kFits>(second, k.bias_correction2)) + k.epsilon;
        w = w * k.weight_factor - L::divide(numerator, denominator);
    }

    template <class Moments>
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
        k.first = Moments::first_scalars(1.0, 1.0, 1.0);
        k.second = Moments::second_scalars(1.0, 1.0, 1.0);
        return k;
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
