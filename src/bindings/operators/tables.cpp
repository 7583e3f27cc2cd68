// Converts rows of integers to structs of the core and back.
#include "tables.h"

#include <algorithm>
#include <limits>
#include <string>

#include "flashoptim/error.h"
#include "tensors.h"

namespace flashoptim::operators {

namespace {

/// The columns of a plan: these, then dtype and count of the buffer at each place.
enum : std::size_t { kWeightDType, kMasterWeightBits, kPaperArithmetic, kMoments, kBuffers };
static_assert(kBuffers + 2 * std::size_t{kMaxBuffers} == kPlanRow);
/// The columns of a step after those of layout and plan.
enum : std::size_t { kGroup = kLayoutRow + kPlanRow, kUnfilledAt, kCheckGradient, kRule };
static_assert(kRule + 1 == kStepRow);

template <class Enum>
Enum enumerator(std::int64_t value, Enum last, const char* name) {
    if (value < 0 || value > static_cast<std::int64_t>(last)) {
        refuse(std::string(name) + " is " + std::to_string(value) + ": it must be 0 to " +
               std::to_string(static_cast<int>(last)));
    }
    return static_cast<Enum>(value);
}

}  // namespace

namespace {

/// Whether a tensor can have this layout. If so, no index of an element and no number of groups overflows.
bool is_possible(Row row, const Layout& layout) {
    // Half of the range, so that a count rounded up to whole groups does not overflow.
    constexpr auto kMost = std::numeric_limits<std::int64_t>::max() / 2;
    if (std::ranges::any_of(row, [](auto value) { return value < 0 || value > kMost; })) return false;
    if (layout.numel == 0) return layout.rows == 0 || layout.row_length == 0;
    if (layout.row_length == 0 || layout.numel % layout.row_length != 0 ||
        layout.rows != layout.numel / layout.row_length || layout.numel > layout.whole_numel ||
        layout.whole_row_length == 0)
        return false;
    const auto whole_rows = layout.whole_numel / layout.whole_row_length;
    return layout.whole_numel % layout.whole_row_length == 0 &&
           layout.column_offset + layout.row_length <= layout.whole_row_length &&
           layout.row_offset + layout.rows <= whole_rows;
}

}  // namespace

std::array<std::int64_t, kLayoutRow> row_of(const Layout& layout) {
    return {layout.numel,
            layout.rows,
            layout.row_length,
            layout.whole_numel,
            layout.whole_row_length,
            layout.row_offset,
            layout.column_offset,
            layout.one_dimensional ? 1 : 0};
}

Layout layout_from(Row row) {
    if (row.size() != kLayoutRow) refuse("a layout has 8 integers: make it with layout()");
    Layout layout;
    layout.numel = row[0];
    layout.rows = row[1];
    layout.row_length = row[2];
    layout.whole_numel = row[3];
    layout.whole_row_length = row[4];
    layout.row_offset = row[5];
    layout.column_offset = row[6];
    layout.one_dimensional = row[7] != 0;
    if (!is_possible(row, layout)) refuse("a layout contradicts itself: make it with layout()");
    return layout;
}

std::array<std::int64_t, kPlanRow> row_of(const StoragePlan& plan) {
    std::array<std::int64_t, kPlanRow> row{};
    row[kWeightDType] = static_cast<std::int64_t>(plan.weight_dtype);
    row[kMasterWeightBits] = plan.master_weight_bits;
    row[kPaperArithmetic] = plan.paper_arithmetic ? 1 : 0;
    row[kMoments] = static_cast<std::int64_t>(plan.moments);
    for (std::size_t place = 0; place < kMaxBuffers; ++place) {
        row[kBuffers + 2 * place] = static_cast<std::int64_t>(plan.buffers[place].dtype);
        row[kBuffers + 2 * place + 1] = plan.buffers[place].count;
    }
    return row;
}

StoragePlan plan_from(Row row, Rule rule, const Hyperparameters& hyperparameters, const Layout& layout) {
    if (row.size() != kPlanRow)
        refuse("a plan has " + std::to_string(kPlanRow) + " integers: make it with plan()");
    // A few columns determine the plan. The others must have the values that follow from these.
    StorageOptions options;
    const auto moments = storage_from(row[kMoments]);
    const bool is_paper = row[kPaperArithmetic] != 0;
    options.format = is_paper                            ? Format::kPaper
                     : moments == MomentStorage::kNative ? Format::kNative
                                                         : Format::kFloat32;
    options.quantize = moments != MomentStorage::kFloat32;
    options.master_weight_bits = bits_from(row[kMasterWeightBits]);
    options.min_quantized_numel = 0;
    options.min_quantized_numel_1d = 0;
    auto plan =
        plan_storage(rule, hyperparameters, options, weight_dtype_from(row[kWeightDType]), layout, "plan");
    if (!std::ranges::equal(row_of(plan), row)) {
        refuse(
            "a plan does not fit its layout, rule or hyperparameters: make it again with plan() where one of "
            "them changed");
    }
    return plan;
}

int bits_from(std::int64_t value) {
    constexpr std::int64_t kMost = 32;
    if (value < 0 || value > kMost) {
        refuse("master_weight_bits is " + std::to_string(value) + ": choose 0, 16, 24 or 32");
    }
    return static_cast<int>(value);
}
Rule rule_from(std::int64_t value) { return enumerator(value, kRules.back().rule, "rule"); }
Format format_from(std::int64_t value) { return enumerator(value, Format::kFloat32, "format"); }
DType weight_dtype_from(std::int64_t value) { return enumerator(value, DType::kFloat16, "weight_dtype"); }
MomentStorage storage_from(std::int64_t value) {
    return enumerator(value, MomentStorage::kFloat32, "moment storage");
}

Hyperparameters hyperparameters_from(std::span<const double> row) {
    Hyperparameters h;
    for (std::size_t n = 0; n < kHyperparameterFields.size(); ++n) kHyperparameterFields[n].set(h, row[n]);
    return h;
}

StepRow step_row_from(Row row, std::span<const Hyperparameters> groups) {
    const auto group = row[kGroup];
    if (group < 0 || group >= static_cast<std::int64_t>(groups.size())) {
        refuse("table names group " + std::to_string(group) + ", and there are " +
               std::to_string(groups.size()) + " rows of hyperparameters");
    }
    StepRow result;
    result.group = static_cast<std::size_t>(group);
    result.rule = rule_from(row[kRule]);
    result.layout = layout_from(row.first(kLayoutRow));
    result.plan =
        plan_from(row.subspan(kLayoutRow, kPlanRow), result.rule, groups[result.group], result.layout);
    result.unfilled_at = row[kUnfilledAt];
    result.check_gradient = row[kCheckGradient] != 0;
    return result;
}

}  // namespace flashoptim::operators
