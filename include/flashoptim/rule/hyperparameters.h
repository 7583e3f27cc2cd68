// What a user sets of an optimizer and what one step makes of it. Plain data for host and device.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/format/moments.h"
#include "flashoptim/numeric/quotient.h"

namespace flashoptim {

/// The update rules. SGDW and AdamW decay weights apart from the gradient; SGD and Adam add an L2 term to it.
enum class Rule : std::uint8_t { kSGD, kSGDW, kAdam, kAdamW, kLion };

/// Every hyperparameter of every rule; a rule reads its own. Units: plain numbers, weight decay per unit of learning rate.
struct Hyperparameters {
    double learning_rate = 1e-3;
    double beta1 = 0.9;     // Adam, Lion
    double beta2 = 0.999;   // Adam, Lion
    double epsilon = 1e-8;  // Adam, outside the root and after the bias correction
    double weight_decay = 0.0;
    double momentum = 0.0;               // SGD
    double dampening = 0.0;              // SGD
    double initial_learning_rate = 0.0;  // for fully_decoupled
    bool nesterov = false;               // SGD
    bool maximize = false;
    bool fully_decoupled =
        false;  // weights decay by 1 - weight_decay * learning_rate / initial_learning_rate

    bool operator==(const Hyperparameters&) const = default;
};

/// The scalars of one step of one tensor, rounded to fp32 once. Filled by a rule's `scalars`, read by its `update`.
struct StepScalars {
    float learning_rate =
        0.0F;  // of the update in carried units, bias correction folded in where the rule says so
    float weight_factor = 1.0F;        // decoupled weight decay
    float l2 = 0.0F;                   // coupled weight decay
    float root_scale = 1.0F;           // Adam: carried root of v to its bias-corrected root
    float epsilon = 0.0F;              // Adam
    float update_limit = 0.0F;         // Adam: largest |update| in carried units
    float beta1 = 0.0F, beta2 = 0.0F;  // Lion and the rules of the paper; SGD's momentum is beta1
    float one_minus_beta1 = 1.0F, one_minus_beta2 = 1.0F;  // the same
    StepDivisor bias_correction1, bias_correction2;        // the paper's Adam
    MomentScalars first, second;
    bool nesterov = false;
    bool has_momentum = false;  // SGD: whether a momentum buffer exists already
    bool adds_l2 = false;       // whether decay is coupled; the paper's rules add its term also where it is 0
};

/// Whether weights decay apart from the gradient, or an L2 term is added to it.
enum class Decay : std::uint8_t { kCoupled, kDecoupled };

}  // namespace flashoptim

namespace flashoptim::inline FLASHOPTIM_ISA {

/// base^exponent by squaring: IEEE products only, the same on host and device. exponent >= 0.
FLASHOPTIM_INLINE double power(double base, std::int64_t exponent) {
    double result = 1.0;
    for (auto bits = static_cast<std::uint64_t>(exponent); bits != 0; bits >>= 1U) {
        if ((bits & 1U) != 0) result *= base;
        base *= base;
    }
    return result;
}

/// What decoupled decay takes from a weight in one step: weight_decay * learning_rate, or where the decay is decoupled from
/// the schedule's peak too, weight_decay * learning_rate / initial_learning_rate.
FLASHOPTIM_INLINE double decay_per_step(const Hyperparameters& h) {
    if (!h.fully_decoupled) return h.weight_decay * h.learning_rate;
    return h.initial_learning_rate > 0.0 ? h.weight_decay * (h.learning_rate / h.initial_learning_rate) : 0.0;
}

/// Weight decay in our order: the factor is formed in double and rounded once.
FLASHOPTIM_INLINE void set_decay(StepScalars& k, const Hyperparameters& h, Decay decay) {
    if (decay == Decay::kDecoupled) {
        k.weight_factor = static_cast<float>(1.0 - decay_per_step(h));
    } else {
        k.l2 = static_cast<float>(h.weight_decay);
        k.adds_l2 = true;
    }
}
/// Weight decay in the order of the paper's authors: the product is rounded first.
FLASHOPTIM_INLINE void set_paper_decay(StepScalars& k, const Hyperparameters& h, Decay decay) {
    if (decay == Decay::kDecoupled) {
        k.weight_factor = 1.0F - static_cast<float>(decay_per_step(h));
    } else {
        k.l2 = static_cast<float>(h.weight_decay);
        k.adds_l2 = true;
    }
}

/// The gradient with its L2 term.
template <class L>
FLASHOPTIM_INLINE typename L::Float add_l2(typename L::Float g, typename L::Float w, const StepScalars& k) {
    return k.l2 == 0.0F ? g : L::fma(w, L::broadcast(k.l2), g);
}
/// The same in two roundings, and with a decay of 0 too: a weight that is Inf or NaN reaches the moments that way.
template <class L>
FLASHOPTIM_INLINE typename L::Float add_paper_l2(typename L::Float g, typename L::Float w,
                                                 const StepScalars& k) {
    return k.adds_l2 ? g + w * k.l2 : g;
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
