// The rows of integers and numbers in which Python hands layouts, plans and hyperparameters
// to a step. No tensors here.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "flashoptim/step.h"

namespace flashoptim::operators {

using Row = std::span<const std::int64_t>;

constexpr std::size_t kLayoutRow = 8;
constexpr std::size_t kPlanRow = 4 + 2 * std::size_t{kMaxBuffers};
constexpr std::size_t kStepRow = kLayoutRow + kPlanRow + 4;  // group, unfilled_at, check_gradient, rule
constexpr std::size_t kHyperparameterRow = kHyperparameterFields.size();

std::array<std::int64_t, kLayoutRow> row_of(const Layout& layout);
std::array<std::int64_t, kPlanRow> row_of(const StoragePlan& plan);

/// @throws what `refuse` throws for a row that no layout, or no plan of this layout, has: a step
///         trusts both with memory.
Layout layout_from(Row row);
StoragePlan plan_from(Row row, Rule rule, const Hyperparameters& hyperparameters, const Layout& layout);

/// Refuses what no storage has. That it is one of the bits that there are the core says.
int bits_from(std::int64_t value);
/// Refuses what is not an enumerator.
Rule rule_from(std::int64_t value);
Format format_from(std::int64_t value);
DType weight_dtype_from(std::int64_t value);
MomentStorage storage_from(std::int64_t value);

Hyperparameters hyperparameters_from(std::span<const double> row);

/// The row of one tensor of a step.
struct StepRow {
    Layout layout;
    StoragePlan plan;
    Rule rule;
    std::size_t group;
    /// SGD: the step count at which no gradient has reached the momentum buffer yet; -1 where one has.
    std::int64_t unfilled_at;
    bool check_gradient;
};
/// `groups` are checked hyperparameters; the row's group is one of them.
StepRow step_row_from(Row row, std::span<const Hyperparameters> groups);

}  // namespace flashoptim::operators
