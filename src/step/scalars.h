// Computes the scalars of one step of one tensor for any rule and storage, and the clip coefficient. Compiles
// for host and device, because step count and learning rate may lie in device memory.
#pragma once

#include "step/kernel_types.h"

namespace flashoptim {

/// The inputs of a step's scalars.
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
    if constexpr (!std::is_void_v<PaperR>) {
        if (from.paper_arithmetic) return PaperR::template scalars<Float32Moments>(h, from.step, decay);
    }
    if (from.moments == MomentStorage::kNative) {
        return R::template scalars<NativeMoments>(h, from.step, decay);
    }
    return R::template scalars<Float32Moments>(h, from.step, decay);
}

/// The hyperparameter that decides whether the rule's first moment exists (it does if the hyperparameter is
/// not 0), or null if the moment always exists.
template <Rule kRule>
constexpr auto kNeeds = traits_of(kRule).moments.empty() ? nullptr : traits_of(kRule).moments[0].needs;
template <Rule kRule>
constexpr Decay kDecayOf = traits_of(kRule).decay;

FLASHOPTIM_INLINE StepScalars scalars_of(const ScalarSource& from) {
    auto scalars = visit_rule(from.rule, [&]<Rule kRule>() {
        using Of = KernelsOf<kRule>;
        if constexpr (kNeeds<kRule> != nullptr) {
            if (from.hyperparameters.*kNeeds<kRule> == 0.0) {
                return scalars_of_rule<typename Of::NativeWithout, typename Of::PaperWithout>(
                    from, kDecayOf<kRule>);
            }
        }
        return scalars_of_rule<typename Of::Native, typename Of::Paper>(from, kDecayOf<kRule>);
    });
    scalars.has_momentum = from.has_momentum;
    return scalars;
}

/// The factor by which torch's clip_grad_norm_ multiplies gradients.
FLASHOPTIM_INLINE float clip_coefficient(double norm, double max_norm) {
    const double coefficient = max_norm / (norm + 1e-6);
    return coefficient < 1.0 ? static_cast<float>(coefficient) : 1.0F;
}

}  // namespace flashoptim
