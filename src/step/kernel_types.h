// Chooses the types of a kernel (rule, moment format, weight format) from a tensor's rule and storage. This
// is the only switch over them.
#pragma once

#include <type_traits>

#include "flashoptim/format/native_states.h"
#include "flashoptim/format/paper.h"
#include "flashoptim/format/weights.h"
#include "flashoptim/rule/adam.h"
#include "flashoptim/rule/adan.h"
#include "flashoptim/rule/ademamix.h"
#include "flashoptim/rule/lion.h"
#include "flashoptim/rule/sgd.h"
#include "flashoptim/step.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

template <class R, class M, class Visitor>
auto with_native_weight(const StoragePlan& plan, Visitor visit) {
    const bool is_bfloat16 = plan.weight_dtype == DType::kBFloat16;
    const auto with = [&]<class W>() {
        return visit.template operator()<R, typename MomentsFor<R, M, W>::Type, W>();
    };
    if (plan.weight_dtype == DType::kFloat32) return with.template operator()<NativeFloat32Weight>();
    switch (plan.master_weight_bits) {
        case 32:
            return is_bfloat16 ? with.template operator()<Bfloat16Weight32>()
                               : with.template operator()<Float16Weight32>();
        case 24:
            return is_bfloat16 ? with.template operator()<Bfloat16Weight24>()
                               : with.template operator()<Float16Weight24>();
        case 16:
            return is_bfloat16 ? with.template operator()<Bfloat16WeightDithered>()
                               : with.template operator()<Float16WeightDithered>();
        default:
            return is_bfloat16 ? with.template operator()<Bfloat16WeightNearest>()
                               : with.template operator()<Float16WeightNearest>();
    }
}

template <class R, class M, class Visitor>
auto with_paper_weight(const StoragePlan& plan, Visitor visit) {
    const bool is_bfloat16 = plan.weight_dtype == DType::kBFloat16;
    if (plan.weight_dtype == DType::kFloat32) return visit.template operator()<R, M, PaperFloat32Weight>();
    switch (plan.master_weight_bits) {
        case 32:
            return is_bfloat16 ? visit.template operator()<R, M, PaperWeight<PaperBfloat16, std::int16_t>>()
                               : visit.template operator()<R, M, PaperWeight<PaperFloat16, std::int16_t>>();
        case 24:
            return is_bfloat16 ? visit.template operator()<R, M, PaperWeight<PaperBfloat16, std::int8_t>>()
                               : visit.template operator()<R, M, PaperWeight<PaperFloat16, std::int8_t>>();
        default:
            return is_bfloat16 ? visit.template operator()<R, M, PaperPlainWeight<PaperBfloat16>>()
                               : visit.template operator()<R, M, PaperPlainWeight<PaperFloat16>>();
    }
}

/// Calls `visit` with the types for the plan. R is the rule in this project's order of operations, PaperR in
/// the paper's order, or void.
template <class R, class PaperR, class Visitor>
auto with_storage(const StoragePlan& plan, Visitor visit) {
    constexpr bool kHasMoments = R::Moments::kCount > 0;
    if constexpr (!std::is_void_v<PaperR>) {
        if (plan.paper_arithmetic) {
            if constexpr (kHasMoments) {
                if (plan.moments == MomentStorage::kPaper)
                    return with_paper_weight<PaperR, PaperMoments>(plan, visit);
            }
            return with_paper_weight<PaperR, Float32Moments>(plan, visit);
        }
    }
    if constexpr (kHasMoments) {
        if (plan.moments == MomentStorage::kNative) return with_native_weight<R, NativeMoments>(plan, visit);
    }
    return with_native_weight<R, Float32Moments>(plan, visit);
}

/// Calls visit.template operator()<kRule>() for the enumerator equal to `rule`, or for the last one if `rule`
/// is no enumerator.
template <int kPlace = 0, class Visitor>
FLASHOPTIM_INLINE auto visit_rule(Rule rule, Visitor visit) {
    constexpr auto kHere = static_cast<Rule>(kPlace);
    if constexpr (kPlace + 1 < kRuleCount) {
        if (rule != kHere) return visit_rule<kPlace + 1>(rule, visit);
    }
    return visit.template operator()<kHere>();
}

// Coupled and decoupled decay differ in the scalars only, so one kernel serves both.
template <class Visitor>
auto visit_kernel_types(Rule rule, const StoragePlan& plan, Visitor visit) {
    return visit_rule(rule, [&]<Rule kRule>() {
        using Of = KernelsOf<kRule>;
        if (plan.codes(0).count != 0) {
            return with_storage<typename Of::Native, typename Of::Paper>(plan, visit);
        }
        return with_storage<typename Of::NativeWithout, typename Of::PaperWithout>(plan, visit);
    });
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA
