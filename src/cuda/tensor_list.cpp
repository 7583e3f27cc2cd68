// Builds the descriptors that kernels read from a list of items.
#include "cuda/tensor_list.h"

#include <algorithm>
#include <string>

#include "flashoptim/error.h"

namespace flashoptim::cuda {

namespace {

/// Chunk::group, the index of a group in its row, has 32 bits.
constexpr std::int64_t kMaxGroupsInRow = (std::int64_t{1} << 32) - std::int64_t{2} * kMaxGroupsInChunk;

bool is_aligned_for(const void* p, std::size_t bytes_of_element) {
    const auto needed = std::min<std::size_t>(bytes_of_element * kElements, 16);
    return reinterpret_cast<std::uintptr_t>(p) % needed == 0;
}

/// The buffer at a place of an item's state; null if its plan has none. @throws InvalidArgument if it is
/// missing.
void* checked_buffer(const StepItem& item, int place, std::size_t index) {
    if (item.plan.at(place).count == 0) return nullptr;
    if (item.state.at(place) != nullptr) return item.state.at(place);
    throw InvalidArgument("tensor " + std::to_string(index) + ": its " +
                          std::string(buffer_name(item.rule, place)) +
                          " is null: give the device memory of every buffer that its plan has");
}

DeviceTensor entry_of(const StepItem& item, std::size_t index, std::uint32_t kind) {
    const auto& layout = *item.layout;
    const auto& plan = item.plan;
    DeviceTensor t;
    t.kind = kind;
    if (layout.numel == 0) return t;
    if (!is_known(item.rule)) {
        throw InvalidArgument("tensor " + std::to_string(index) + ": rule " +
                              std::to_string(static_cast<int>(item.rule)) +
                              " does not exist: use an enumerator of the header");
    }
    t.numel = layout.numel;
    if (item.weight == nullptr || item.gradient == nullptr) {
        throw InvalidArgument("tensor " + std::to_string(index) +
                              ": its weight or gradient is null: give both in device memory");
    }
    t.weight = item.weight;
    t.correction = checked_buffer(item, kCorrectionPlace, index);
    for (int n = 0; n < kMaxMoments; ++n) {
        t.codes[n] = checked_buffer(item, codes_place(n), index);
        t.scales[n] = static_cast<std::uint16_t*>(checked_buffer(item, scales_place(n), index));
    }
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
                   is_aligned_for(t.correction, size_of(plan.correction().dtype)) &&
                   is_aligned_for(t.gradient, size_of(t.gradient_dtype));
    for (int n = 0; n < kMaxMoments; ++n) {
        t.is_aligned = t.is_aligned && is_aligned_for(t.codes[n], size_of(plan.codes(n).dtype));
    }
    return t;
}

bool same_cut(const DeviceTensor& a, const DeviceTensor& b) {
    return a.rows == b.rows && a.row_length == b.row_length && a.groups_in_row == b.groups_in_row;
}

}  // namespace

/// The index of the kind with these values. Only the last kSearched kinds are searched, else a new one is
/// added: there may be as many kinds as tensors, and a full search would take quadratic time. With values for
/// single tensors only the last kind is compared.
std::uint32_t DeviceTensorList::List::kind_of(const ScalarSource& source, const ItemValues& values) {
    constexpr std::size_t kSearched = 16;
    const auto last = [](auto& list, std::size_t count) {
        return list.end() - static_cast<std::ptrdiff_t>(std::min(list.size(), count));
    };
    const auto found = std::find(last(sources, kSearched), sources.end(), source);
    KindSource kind;
    kind.values = values;
    kind.source = static_cast<std::uint32_t>(found - sources.begin());
    if (found == sources.end()) sources.push_back(source);
    const auto same = std::find(last(kinds, values == ItemValues() ? kSearched : 1), kinds.end(), kind);
    const auto index = static_cast<std::uint32_t>(same - kinds.begin());
    if (same == kinds.end()) kinds.push_back(kind);
    return index;
}

void DeviceTensorList::List::set_step_counts(std::span<const ItemValues> values) {
    for (const auto& v : values) {
        if (v.steps_done != nullptr) step_counts.push_back(v.steps_done);
    }
    std::sort(step_counts.begin(), step_counts.end());
    step_counts.erase(std::unique(step_counts.begin(), step_counts.end()), step_counts.end());
}

void DeviceTensorList::List::clear() {
    tensors.clear();
    launchers.clear();
    sources.clear();
    kinds.clear();
    step_counts.clear();
    norm_blocks = 0;
}

void DeviceTensorList::set(std::span<const StepItem> items, std::span<const ItemValues> values,
                           FindLaunchers find) {
    if (!values.empty() && values.size() != items.size()) {
        throw InvalidArgument("there are " + std::to_string(items.size()) + " tensors and " +
                              std::to_string(values.size()) +
                              " values in device memory: give one for each tensor, or none");
    }
    auto& next = next_list_;
    next.clear();
    const StepItem* former = nullptr;
    Launchers launchers;
    std::uint32_t kind = 0;
    for (std::size_t n = 0; n < items.size(); ++n) {
        const auto& item = items[n];
        const bool is_of_former_kind = former != nullptr && same_kind(*former, item);
        if (!is_of_former_kind) launchers = find(item.rule, item.plan);
        if (!is_of_former_kind || (!values.empty() && !(values[n] == values[n - 1]))) {
            kind = next.kind_of(ScalarSource(item), values.empty() ? ItemValues() : values[n]);
        }
        former = &item;
        next.launchers.push_back(launchers);
        next.tensors.push_back(entry_of(item, n, kind));
        next.tensors.back().norm_begin = next.norm_blocks;
        next.norm_blocks += (item.layout->numel + kNormBlock - 1) / kNormBlock;
    }
    const bool kinds_changed = next.kinds != list_.kinds;
    if (kinds_changed) next.set_step_counts(values);
    tensors_changed_ = next.tensors != list_.tensors || kinds_changed;
    chunks_changed_ =
        next.launchers != list_.launchers || !std::ranges::equal(next.tensors, list_.tensors, same_cut);
    if (chunks_changed_) {
        next_cut_.set(next);
        std::swap(cut_, next_cut_);
    }
    if (!kinds_changed) std::swap(next.step_counts, list_.step_counts);
    std::swap(list_, next_list_);
}

void DeviceTensorList::Cut::set(const List& list) {
    const auto& tensors = list.tensors;
    const auto& launchers = list.launchers;
    chunks.clear();
    ranges.clear();
    std::int64_t groups_in_list = 0;
    for (const auto& t : tensors) groups_in_list += t.rows * t.groups_in_row;
    groups_in_chunk = chunk_size(groups_in_list);
    for (std::size_t n = 0; n < tensors.size(); ++n) {
        const bool is_known = std::any_of(ranges.begin(), ranges.end(),
                                          [&](const auto& r) { return r.launchers == launchers[n]; });
        if (!is_known && tensors[n].numel != 0) ranges.push_back({launchers[n], 0, 0});
    }
    for (auto& range : ranges) {
        range.begin = static_cast<std::uint32_t>(chunks.size());
        for (std::size_t n = 0; n < tensors.size(); ++n) {
            if (!(launchers[n] == range.launchers)) continue;
            const auto& t = tensors[n];
            const auto groups = t.rows * t.groups_in_row;
            for (std::int64_t at = 0; at < groups; at += groups_in_chunk) {
                chunks.push_back({at / t.groups_in_row, static_cast<std::uint32_t>(at % t.groups_in_row),
                                  static_cast<std::uint32_t>(n)});
            }
        }
        range.count = static_cast<std::uint32_t>(chunks.size()) - range.begin;
    }
}

}  // namespace flashoptim::cuda
