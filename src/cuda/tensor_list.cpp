// Makes what the kernels read from a list of items.
#include "cuda/tensor_list.h"

#include <algorithm>
#include <string>

#include "flashoptim/error.h"

namespace flashoptim::cuda {

namespace {

/// In a row chunks are counted with 32 bits.
constexpr std::int64_t kMaxGroupsInRow = (std::int64_t{1} << 32) - std::int64_t{2} * kGroupsInChunk;

bool is_aligned_for(const void* p, std::size_t bytes_of_element) {
    const auto needed = std::min<std::size_t>(bytes_of_element * kElements, 16);
    return reinterpret_cast<std::uintptr_t>(p) % needed == 0;
}

void* checked(void* buffer, const BufferPlan& plan, const char* name, std::size_t index) {
    if (plan.count != 0 && buffer == nullptr) {
        throw InvalidArgument("tensor " + std::to_string(index) + ": its " + name +
                              " are null: give the device memory of every buffer that its plan has");
    }
    return plan.count == 0 ? nullptr : buffer;
}

TensorEntry entry_of(const StepItem& item, std::size_t index, std::uint32_t kind) {
    const auto& layout = *item.layout;
    const auto& plan = item.plan;
    TensorEntry t;
    t.kind = kind;
    if (layout.numel == 0) return t;
    t.numel = layout.numel;
    if (item.weight == nullptr || item.gradient == nullptr) {
        throw InvalidArgument("tensor " + std::to_string(index) +
                              ": its weight or gradient is null: give both in device memory");
    }
    t.weight = item.weight;
    t.correction = checked(item.state.correction, plan.correction, "corrections", index);
    t.first = checked(item.state.first, plan.first, "first moments", index);
    t.second = checked(item.state.second, plan.second, "second moments", index);
    t.first_scales = static_cast<std::uint16_t*>(
        checked(item.state.first_scales, plan.first_scales, "first scales", index));
    t.second_scales = static_cast<std::uint16_t*>(
        checked(item.state.second_scales, plan.second_scales, "second scales", index));
    t.gradient = item.gradient;
    t.gradient_dtype = item.gradient_dtype;
    t.gradient_factor = item.gradient_factor;
    t.negates_gradient = item.hyperparameters.maximize;
    t.checks_gradient = item.check_gradient || !plan.paper_arithmetic;

    const auto rows = rows_of(item);
    t.row_length = rows.length;
    t.groups_in_row = rows.groups;
    t.rows = layout.numel / rows.length;
    if (t.groups_in_row > kMaxGroupsInRow) {
        throw InvalidArgument("tensor " + std::to_string(index) + " has " + std::to_string(t.row_length) +
                              " elements in a row: cut it into parts of fewer than 2^36");
    }
    t.place = static_cast<std::uint32_t>(
        (layout.row_offset * layout.whole_row_length + layout.column_offset) % kDitherPeriod);
    t.row_places = static_cast<std::uint32_t>(layout.whole_row_length % kDitherPeriod);
    t.is_aligned = is_aligned_for(t.weight, size_of(plan.weight_dtype)) &&
                   is_aligned_for(t.correction, size_of(plan.correction.dtype)) &&
                   is_aligned_for(t.first, size_of(plan.first.dtype)) &&
                   is_aligned_for(t.second, size_of(plan.second.dtype)) &&
                   is_aligned_for(t.gradient, size_of(t.gradient_dtype));
    return t;
}

bool same_cut(const TensorEntry& a, const TensorEntry& b) {
    return a.rows == b.rows && a.row_length == b.row_length && a.groups_in_row == b.groups_in_row;
}

}  // namespace

/// The kind of these values; a new one where no earlier tensor had them. Values of single tensors are told from the last kind's
/// only: there may be as many as tensors.
std::uint32_t TensorList::kind_of(const ScalarSource& source, const ItemValues& values) {
    const auto found = std::find(sources_.begin(), sources_.end(), source);
    KindSource kind;
    kind.values = values;
    kind.source = static_cast<std::uint32_t>(found - sources_.begin());
    if (found == sources_.end()) sources_.push_back(source);
    const auto searched = values == ItemValues() ? kinds_.begin() : kinds_.end() - (kinds_.empty() ? 0 : 1);
    const auto same = std::find(searched, kinds_.end(), kind);
    const auto index = static_cast<std::uint32_t>(same - kinds_.begin());
    if (same == kinds_.end()) kinds_.push_back(kind);
    return index;
}

void TensorList::set_step_counts(std::span<const ItemValues> values) {
    step_counts_.clear();
    for (const auto& v : values) {
        if (v.steps_done != nullptr) step_counts_.push_back(v.steps_done);
    }
    std::sort(step_counts_.begin(), step_counts_.end());
    step_counts_.erase(std::unique(step_counts_.begin(), step_counts_.end()), step_counts_.end());
}

void TensorList::set(std::span<const StepItem> items, std::span<const ItemValues> values,
                     FindLaunchers find) {
    if (!values.empty() && values.size() != items.size()) {
        throw InvalidArgument("there are " + std::to_string(items.size()) + " tensors and " +
                              std::to_string(values.size()) +
                              " values in device memory: give one for each tensor, or none");
    }
    std::swap(tensors_, former_tensors_);
    std::swap(launchers_, former_launchers_);
    std::swap(kinds_, former_kinds_);
    tensors_.clear();
    launchers_.clear();
    kinds_.clear();
    sources_.clear();
    norm_blocks_ = 0;
    const StepItem* former = nullptr;
    Launchers launchers;
    std::uint32_t kind = 0;
    for (std::size_t n = 0; n < items.size(); ++n) {
        const auto& item = items[n];
        const bool is_of_former_kind = former != nullptr && same_kind(*former, item);
        if (!is_of_former_kind) launchers = find(item.rule, item.plan.first.count != 0, item.plan);
        if (!is_of_former_kind || (!values.empty() && !(values[n] == values[n - 1]))) {
            kind = kind_of(ScalarSource(item), values.empty() ? ItemValues() : values[n]);
        }
        former = &item;
        launchers_.push_back(launchers);
        tensors_.push_back(entry_of(item, n, kind));
        tensors_.back().norm_begin = norm_blocks_;
        norm_blocks_ += (item.layout->numel + kNormBlock - 1) / kNormBlock;
    }
    const bool kinds_changed = kinds_ != former_kinds_;
    if (kinds_changed) set_step_counts(values);
    tensors_changed_ = tensors_ != former_tensors_ || kinds_changed;
    chunks_changed_ = launchers_ != former_launchers_ ||
                      !std::equal(tensors_.begin(), tensors_.end(), former_tensors_.begin(),
                                  former_tensors_.end(), same_cut);
    if (chunks_changed_) cut();
}

void TensorList::cut() {
    chunks_.clear();
    ranges_.clear();
    for (std::size_t n = 0; n < tensors_.size(); ++n) {
        const bool is_known = std::any_of(ranges_.begin(), ranges_.end(),
                                          [&](const auto& r) { return r.launchers == launchers_[n]; });
        if (!is_known && tensors_[n].numel != 0) ranges_.push_back({launchers_[n], 0, 0});
    }
    for (auto& range : ranges_) {
        range.begin = static_cast<std::uint32_t>(chunks_.size());
        for (std::size_t n = 0; n < tensors_.size(); ++n) {
            if (!(launchers_[n] == range.launchers)) continue;
            const auto& t = tensors_[n];
            const auto groups = t.rows * t.groups_in_row;
            for (std::int64_t at = 0; at < groups; at += kGroupsInChunk) {
                chunks_.push_back({at / t.groups_in_row, static_cast<std::uint32_t>(at % t.groups_in_row),
                                   static_cast<std::uint32_t>(n)});
            }
        }
        range.count = static_cast<std::uint32_t>(chunks_.size()) - range.begin;
    }
}

}  // namespace flashoptim::cuda
