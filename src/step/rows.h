// How a tensor is cut for the kernels: rows as they see them, and which tensors have their step's
// scalars and kernels in common.
#pragma once

#include <cstdint>

#include "flashoptim/step.h"

namespace flashoptim {

/// Elements in each block of the gradient norm: its sums are formed by blocks on every backend.
constexpr std::int64_t kNormBlock = 1 << 14;
/// Interleaved sums in each block, added up in order: what the additions' latency leaves room for.
constexpr int kNormSums = 32;
/// Totals over which the blocks' sums are dealt out one by one; they are added up in order. A
/// GPU forms them side by side.
constexpr int kNormTotals = 256;

/// Rows as the kernels see them: several rows are one run where groups and indices go on without a break.
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

/// Whether everything but tensors and gradients is the same in both.
inline bool same_kind(const StepItem& a, const StepItem& b) {
    return a.rule == b.rule && a.step == b.step && a.has_momentum == b.has_momentum &&
           a.plan.weight_dtype == b.plan.weight_dtype &&
           a.plan.master_weight_bits == b.plan.master_weight_bits &&
           a.plan.paper_arithmetic == b.plan.paper_arithmetic && a.plan.moments == b.plan.moments &&
           same_moments(a.plan, b.plan) && a.hyperparameters == b.hyperparameters;
}

}  // namespace flashoptim
