// The rows of integers and numbers in which Python passes layouts, plans and hyperparameters to a step. No
// tensors here.
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

/// Refuses a row that is not a valid layout, or not the plan for this layout. A step relies on both for its
/// memory accesses.
Layout layout_from(Row row);
StoragePlan plan_from(Row row, Rule rule, const Hyperparameters& hyperparameters, const Layout& layout);

/// Refuses a value that is not in [0, 32]. The core refuses other bits than 0, 16, 24 and 32.
int bits_from(std::int64_t value);
/// Refuses a value that is not an enumerator.
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
    /// SGD: the step count at which the momentum buffer is not filled yet; -1 if it is filled.
    std::int64_t unfilled_at;
    bool check_gradient;
};
/// `groups` are checked hyperparameters. Refuses a row whose group is not among them.
StepRow step_row_from(Row row, std::span<const Hyperparameters> groups);

}  // namespace flashoptim::operators
