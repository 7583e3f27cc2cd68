// The scalars of one step of one tensor, whatever its rule and storage, and the one that clips gradients. Compiles for the host and
// for the device, where step count and learning rate may lie.
#pragma once

#include "flashoptim/format/native_states.h"
#include "flashoptim/format/paper.h"
#include "flashoptim/rule/adam.h"
#include "flashoptim/rule/lion.h"
#include "flashoptim/rule/sgd.h"
#include "flashoptim/step.h"

namespace flashoptim {

/// What the scalars of a step follow from.
struct ScalarSource {
    Hyperparameters hyperparameters;
    std::int64_t step = 1;
    Rule rule = Rule::kAdamW;
    MomentStorage moments = MomentStorage::kFloat32;
    bool paper_arithmetic = false;
    bool has_momentum = true;

    ScalarSource() = default;
    explicit ScalarSource(const StepItem& item)
        : hyperparameters(item.hyperparameters),
          step(item.step),
          rule(item.rule),
          moments(item.plan.moments),
          paper_arithmetic(item.plan.paper_arithmetic),
          has_momentum(item.has_momentum) {}
    bool operator==(const ScalarSource&) const = default;
};

template <class R, class PaperR>
FLASHOPTIM_INLINE StepScalars scalars_of_rule(const ScalarSource& from, Decay decay) {
    const auto& h = from.hyperparameters;
    if (from.paper_arithmetic) return PaperR::template scalars<Float32Moments>(h, from.step, decay);
    if (from.moments == MomentStorage::kNative) {
        return R::template scalars<NativeMoments>(h, from.step, decay);
    }
    return R::template scalars<Float32Moments>(h, from.step, decay);
}

FLASHOPTIM_INLINE StepScalars scalars_of(const ScalarSource& from) {
    switch (from.rule) {
        case Rule::kSGD:
        case Rule::kSGDW: {
            const auto decay = from.rule == Rule::kSGD ? Decay::kCoupled : Decay::kDecoupled;
            auto scalars = from.hyperparameters.momentum != 0.0
                               ? scalars_of_rule<SgdRule<true>, PaperSgdRule<true>>(from, decay)
                               : scalars_of_rule<SgdRule<false>, PaperSgdRule<false>>(from, decay);
            scalars.has_momentum = from.has_momentum;
            return scalars;
        }
        case Rule::kAdam:
            return scalars_of_rule<AdamRule, PaperAdamRule>(from, Decay::kCoupled);
        case Rule::kAdamW:
            return scalars_of_rule<AdamRule, PaperAdamRule>(from, Decay::kDecoupled);
        case Rule::kLion:
            return scalars_of_rule<LionRule, PaperLionRule>(from, Decay::kDecoupled);
    }
    return {};
}

/// What torch's clip_grad_norm_ multiplies gradients by.
FLASHOPTIM_INLINE float clip_coefficient(double norm, double max_norm) {
    const double coefficient = max_norm / (norm + 1e-6);
    return coefficient < 1.0 ? static_cast<float>(coefficient) : 1.0F;
}

}  // namespace flashoptim
