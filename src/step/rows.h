// Divides a tensor into rows for the kernels, and says which tensors can share scalars and kernels.
#pragma once

#include <cstdint>

#include "flashoptim/step.h"

namespace flashoptim {

/// Elements in a block of the gradient norm. Every backend sums by the same blocks.
constexpr std::int64_t kNormBlock = 1 << 14;
/// Interleaved sums in a block, added up in order. So many hide the latency of the additions.
constexpr int kNormSums = 32;
/// Number of totals. The sum of block n is added to total n % kNormTotals; the totals are added up in order.
/// A GPU computes them in parallel.
constexpr int kNormTotals = 256;

/// Rows for the kernels. Several rows of the layout are one row here if groups and indices continue across
/// them.
struct Rows {
    std::int64_t length = 0;
    std::int64_t groups = 0;  // in one row
};

inline Rows rows_of(const StepItem& item) {
    const auto& layout = *item.layout;
    const bool indices_go_on =
        layout.row_length == layout.whole_row_length || item.plan.moments == MomentStorage::kPaper;
    const bool groups_go_on =
        item.plan.moments != MomentStorage::kNative || layout.row_length % kGroupSize == 0;
    const auto length = indices_go_on && groups_go_on ? layout.numel : layout.row_length;
    return {length, (length + kGroupSize - 1) / kGroupSize};
}

inline bool same_moments(const StoragePlan& a, const StoragePlan& b) {
    for (int n = 0; n < kMaxMoments; ++n) {
        if ((a.codes(n).count != 0) != (b.codes(n).count != 0)) return false;
    }
    return true;
}

/// Whether two items differ in their tensors and gradients only.
inline bool same_kind(const StepItem& a, const StepItem& b) {
    return a.rule == b.rule && a.step == b.step && a.has_momentum == b.has_momentum &&
           a.plan.weight_dtype == b.plan.weight_dtype &&
           a.plan.master_weight_bits == b.plan.master_weight_bits &&
           a.plan.paper_arithmetic == b.plan.paper_arithmetic && a.plan.moments == b.plan.moments &&
           same_moments(a.plan, b.plan) && a.hyperparameters == b.hyperparameters;
}

}  // namespace flashoptim
