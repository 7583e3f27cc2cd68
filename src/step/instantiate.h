// Every rule with every storage for one kind of lanes. A backend file includes this once and names its lanes.
#pragma once

#include <type_traits>

#include "flashoptim/format/native_states.h"
#include "flashoptim/format/paper.h"
#include "flashoptim/format/weights.h"
#include "flashoptim/rule/adam.h"
#include "flashoptim/rule/lion.h"
#include "flashoptim/rule/sgd.h"
#include "step/fused_step.h"
#include "step/ordinary_step.h"

namespace flashoptim {

template <class L, class R, class M, class W>
Kernels kernels_of() {
    if constexpr (!std::is_same_v<L, ScalarLanes>) {
        return {&OrdinaryStep<L, R, M, W>::run, &FusedStep<L, R, M, W>::count_bad};
    } else {
        return {&FusedStep<L, R, M, W>::run, &FusedStep<L, R, M, W>::count_bad};
    }
}

template <class L, class R, class M>
Kernels with_native_weight(const StoragePlan& plan) {
    const bool is_bfloat16 = plan.weight_dtype == DType::kBFloat16;
    if (plan.weight_dtype == DType::kFloat32) return kernels_of<L, R, M, NativeFloat32Weight>();
    switch (plan.master_weight_bits) {
        case 32:
            return is_bfloat16 ? kernels_of<L, R, M, Bfloat16Weight32>()
                               : kernels_of<L, R, M, Float16Weight32>();
        case 24:
            return is_bfloat16 ? kernels_of<L, R, M, Bfloat16Weight24>()
                               : kernels_of<L, R, M, Float16Weight24>();
        case 16:
            return is_bfloat16 ? kernels_of<L, R, M, Bfloat16WeightDithered>()
                               : kernels_of<L, R, M, Float16WeightDithered>();
        default:
            return is_bfloat16 ? kernels_of<L, R, M, Bfloat16WeightNearest>()
                               : kernels_of<L, R, M, Float16WeightNearest>();
    }
}

template <class L, class R, class M>
Kernels with_paper_weight(const StoragePlan& plan) {
    const bool is_bfloat16 = plan.weight_dtype == DType::kBFloat16;
    if (plan.weight_dtype == DType::kFloat32) return kernels_of<L, R, M, PaperFloat32Weight>();
    switch (plan.master_weight_bits) {
        case 32:
            return is_bfloat16 ? kernels_of<L, R, M, PaperWeight<PaperBfloat16, std::int16_t>>()
                               : kernels_of<L, R, M, PaperWeight<PaperFloat16, std::int16_t>>();
        case 24:
            return is_bfloat16 ? kernels_of<L, R, M, PaperWeight<PaperBfloat16, std::int8_t>>()
                               : kernels_of<L, R, M, PaperWeight<PaperFloat16, std::int8_t>>();
        default:
            return is_bfloat16 ? kernels_of<L, R, M, PaperPlainWeight<PaperBfloat16>>()
                               : kernels_of<L, R, M, PaperPlainWeight<PaperFloat16>>();
    }
}

/// A rule in our order of operations and in the paper's.
template <class L, class R, class PaperR>
Kernels with_storage(const StoragePlan& plan) {
    constexpr bool kHasMoments = R::kHasFirst;
    if (plan.paper_arithmetic) {
        if constexpr (kHasMoments) {
            if (plan.moments == MomentStorage::kPaper)
                return with_paper_weight<L, PaperR, PaperMoments>(plan);
        }
        return with_paper_weight<L, PaperR, Float32Moments>(plan);
    }
    if constexpr (kHasMoments) {
        if (plan.moments == MomentStorage::kNative) return with_native_weight<L, R, NativeMoments>(plan);
    }
    return with_native_weight<L, R, Float32Moments>(plan);
}

// Coupled and decoupled decay differ in scalars only: one kernel serves both.
template <class L>
Kernels find_kernels(Rule rule, bool momentum, const StoragePlan& plan) {
    switch (rule) {
        case Rule::kSGD:
        case Rule::kSGDW:
            return momentum ? with_storage<L, SgdRule<true>, PaperSgdRule<true>>(plan)
                            : with_storage<L, SgdRule<false>, PaperSgdRule<false>>(plan);
        case Rule::kAdam:
        case Rule::kAdamW:
            return with_storage<L, AdamRule, PaperAdamRule>(plan);
        case Rule::kLion:
            return with_storage<L, LionRule, PaperLionRule>(plan);
    }
    return {};
}

/// Sixteen interleaved sums in double, added up in order: fixed by element index, whatever the width of the lanes. The square of a
/// float is exact in double.
template <class L>
double sum_of_squares(const void* gradient, DType dtype, float factor, std::int64_t count) {
    constexpr int kChunk = 256, kSums = 16;
    typename L::Doubles sums[kSums / L::kWidth] = {};
    alignas(64) float values[kChunk];
    const auto* from = static_cast<const std::byte*>(gradient);
    for (std::int64_t at = 0; at < count; at += kChunk) {
        const auto size = static_cast<int>(count - at < kChunk ? count - at : kChunk);
        const auto* chunk = from + at * static_cast<std::int64_t>(size_of(dtype));
        if (size == kChunk) {
            read_gradient<L>(chunk, dtype, factor, kChunk, values);
        } else {
            alignas(64) std::byte padded[kChunk * 4] = {};
            std::memcpy(padded, chunk, static_cast<std::size_t>(size) * size_of(dtype));
            read_gradient<L>(padded, dtype, factor, kChunk, values);
        }
        for (int e = 0; e < kChunk; e += kSums) {
            FLASHOPTIM_UNROLL
            for (int n = 0; n < kSums; n += L::kWidth) {
                const auto g = L::load_f32(values + e + n);
                const auto is_good = L::less(absolute<L>(g), L::broadcast(0x1p48F));
                L::add_squares(L::select(is_good, g, L::broadcast(0.0F)), sums[n / L::kWidth]);
            }
        }
    }
    double in_order[kSums];
    std::memcpy(in_order, sums, sizeof in_order);
    double total = 0.0;
    for (const double sum : in_order) total += sum;
    return total;
}

template <class L>
BackendKernels backend_of() {
    return {&find_kernels<L>, &sum_of_squares<L>};
}

}  // namespace flashoptim
