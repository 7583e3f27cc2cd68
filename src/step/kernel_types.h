// Which rule, moments and weight a kernel is made of, by what a tensor's storage says: the only switch over all of them.
#pragma once

#include "flashoptim/format/native_states.h"
#include "flashoptim/format/paper.h"
#include "flashoptim/format/weights.h"
#include "flashoptim/rule/adam.h"
#include "flashoptim/rule/lion.h"
#include "flashoptim/rule/sgd.h"
#include "flashoptim/step.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

template <class R, class M, class Visitor>
auto with_native_weight(const StoragePlan& plan, Visitor visit) {
    const bool is_bfloat16 = plan.weight_dtype == DType::kBFloat16;
    if (plan.weight_dtype == DType::kFloat32) return visit.template operator()<R, M, NativeFloat32Weight>();
    switch (plan.master_weight_bits) {
        case 32:
            return is_bfloat16 ? visit.template operator()<R, M, Bfloat16Weight32>()
                               : visit.template operator()<R, M, Float16Weight32>();
        case 24:
            return is_bfloat16 ? visit.template operator()<R, M, Bfloat16Weight24>()
                               : visit.template operator()<R, M, Float16Weight24>();
        case 16:
            return is_bfloat16 ? visit.template operator()<R, M, Bfloat16WeightDithered>()
                               : visit.template operator()<R, M, Float16WeightDithered>();
        default:
            return is_bfloat16 ? visit.template operator()<R, M, Bfloat16WeightNearest>()
                               : visit.template operator()<R, M, Float16WeightNearest>();
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

/// A rule in our order of operations and in the paper's.
template <class R, class PaperR, class Visitor>
auto with_storage(const StoragePlan& plan, Visitor visit) {
    constexpr bool kHasMoments = R::kHasFirst;
    if (plan.paper_arithmetic) {
        if constexpr (kHasMoments) {
            if (plan.moments == MomentStorage::kPaper)
                return with_paper_weight<PaperR, PaperMoments>(plan, visit);
        }
        return with_paper_weight<PaperR, Float32Moments>(plan, visit);
    }
    if constexpr (kHasMoments) {
        if (plan.moments == MomentStorage::kNative) return with_native_weight<R, NativeMoments>(plan, visit);
    }
    return with_native_weight<R, Float32Moments>(plan, visit);
}

// Coupled and decoupled decay differ in scalars only: one kernel serves both.
template <class Visitor>
auto visit_kernel_types(Rule rule, bool momentum, const StoragePlan& plan, Visitor visit) {
    switch (rule) {
        case Rule::kSGD:
        case Rule::kSGDW:
            return momentum ? with_storage<SgdRule<true>, PaperSgdRule<true>>(plan, visit)
                            : with_storage<SgdRule<false>, PaperSgdRule<false>>(plan, visit);
        case Rule::kAdam:
        case Rule::kAdamW:
            return with_storage<AdamRule, PaperAdamRule>(plan, visit);
        case Rule::kLion:
            return with_storage<LionRule, PaperLionRule>(plan, visit);
    }
    return decltype(visit.template operator()<AdamRule, Float32Moments, NativeFloat32Weight>()) {};
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA
