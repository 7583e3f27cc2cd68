// The address ranges of tensors, sorted, so that overlaps with a new tensor are found without a full search.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <string_view>

#include "flashoptim/tensor_view.h"

namespace flashoptim {

/// The addresses [begin, end).
struct MemoryRange {
    std::uintptr_t begin = 0, end = 0;
    bool operator==(const MemoryRange&) const = default;
    [[nodiscard]] bool empty() const { return begin == end; }
    [[nodiscard]] bool overlaps(const MemoryRange& other) const {
        return begin < other.end && other.begin < end;
    }
};

/// The range from the first to the last byte of a tensor whose strides are given and may be negative. Empty
/// if the tensor has no elements.
/// @throws InvalidArgument if a stride leaves the address space.
MemoryRange range_of(const TensorView& tensor, std::string_view name);

/// Whether any element of the tensor lies in `range`. A tensor with holes may overlap `range` without that.
bool has_element_in(const MemoryRange& range, const TensorView& tensor);

/// Ranges, each with the id of its tensor. Adding a range has the strong exception guarantee. `Before` orders
/// addresses.
template <class Before>
class BasicMemoryRanges {
public:
    using Id = std::size_t;
    /// Whether the ranges may overlap each other. If none does, the preceding range is the only candidate of
    /// a search.
    enum class Each : bool { kApart, kAnywhere };
    explicit BasicMemoryRanges(Each each, Before before = Before()) : each_(each), order_{before} {}

    void add(const MemoryRange& range, Id id) {
        if (range.empty()) return;
        by_length_.try_emplace(class_of(range), order_).first->second.insert({range.begin, range.end, id});
    }
    void remove(const MemoryRange& range, Id id) noexcept {
        const auto at = by_length_.find(class_of(range));
        if (at != by_length_.end()) at->second.erase({range.begin, range.end, id});
    }
    /// Calls is_wanted(id) for each range that overlaps `range` until it returns true. Returns that id, or
    /// `none`.
    template <class Wanted>
    Id find_overlap(const MemoryRange& range, Id none, Wanted is_wanted) const {
        if (range.empty()) return none;
        for (const auto& [bits, ranges] : by_length_) {
            for (auto at = first_before(ranges, bits, range); at != ranges.end() && at->begin < range.end;
                 ++at) {
                if (at->end > range.begin && is_wanted(at->id)) return at->id;
            }
        }
        return none;
    }

private:
    struct Entry {
        std::uintptr_t begin, end;
        Id id;
    };
    struct InOrder {
        Before before;
        bool operator()(const Entry& a, const Entry& b) const {
            if (a.begin != b.begin) return before(a.begin, b.begin);
            return a.id != b.id ? before(a.id, b.id) : before(a.end, b.end);
        }
    };
    using Ranges = std::set<Entry, InOrder>;

    /// The class of a range: the bits of its length. Each class is searched alone, so that one long range
    /// does not widen the search among short ones.
    [[nodiscard]] int class_of(const MemoryRange& range) const {
        return each_ == Each::kApart ? 0 : static_cast<int>(std::bit_width(range.end - range.begin));
    }
    [[nodiscard]] typename Ranges::const_iterator first_before(const Ranges& ranges, int bits,
                                                               const MemoryRange& range) const {
        constexpr auto kLast = std::numeric_limits<std::uintptr_t>::max();
        const auto behind = [&](std::uintptr_t begin) { return ranges.upper_bound({begin, kLast, kLast}); };
        if (each_ == Each::kAnywhere) {
            const auto longest = kLast >> (std::numeric_limits<std::uintptr_t>::digits - bits);
            return range.begin > longest ? behind(range.begin - longest) : ranges.begin();
        }
        const auto at = behind(range.begin);
        return at == ranges.begin() ? at : std::prev(at);
    }

    Each each_;
    InOrder order_;
    std::map<int, Ranges> by_length_;
};
using MemoryRanges = BasicMemoryRanges<std::less<>>;

}  // namespace flashoptim
