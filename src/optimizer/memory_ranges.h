// Where the memory of tensors lies, kept in the order of addresses: what overlaps a new tensor is found without looking at all others.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <string_view>

#include "flashoptim/tensor_view.h"

namespace flashoptim {

/// Addresses of bytes: [begin, end).
struct MemoryRange {
    std::uintptr_t begin = 0, end = 0;
    bool operator==(const MemoryRange&) const = default;
    [[nodiscard]] bool empty() const { return begin == end; }
    [[nodiscard]] bool overlaps(const MemoryRange& other) const {
        return begin < other.end && other.begin < end;
    }
};

/// From the first to the last byte of a tensor with given strides of either sign; empty where it has no elements.
/// @throws InvalidArgument where a stride reaches out of the address space
MemoryRange range_of(const TensorView& tensor, std::string_view name);

/// Whether an element of the tensor, whose range overlaps `range`, lies in it: it may not where the tensor has holes.
bool has_element_in(const MemoryRange& range, const TensorView& tensor);

/// Ranges with the numbers of what lies there. Adding one has the strong guarantee. `Before` orders addresses.
template <class Before>
class BasicMemoryRanges {
public:
    using Id = std::size_t;
    /// Whether ranges that are added may overlap each other: where none does, one look at the neighbour before is enough.
    enum class Each : bool { kApart, kAnywhere };
    explicit BasicMemoryRanges(Each each, Before before = Before()) : each_(each), ranges_(before) {}

    void add(const MemoryRange& range, Id id) {
        if (range.empty()) return;
        ranges_.emplace(range.begin, Entry{range.end, id});
        longest_ = std::max(longest_, range.end - range.begin);
    }
    void remove(const MemoryRange& range, Id id) noexcept {
        for (auto at = ranges_.lower_bound(range.begin); at != ranges_.end() && at->first == range.begin;
             ++at) {
            if (at->second.id != id) continue;
            ranges_.erase(at);
            return;
        }
    }
    /// Calls is_wanted(id) for what overlaps `range` until it returns true; returns the last id then, else `none`.
    template <class Wanted>
    Id find_overlap(const MemoryRange& range, Id none, Wanted is_wanted) const {
        if (range.empty()) return none;
        for (auto at = first_before(range); at != ranges_.end() && at->first < range.end; ++at) {
            const auto& [end, id] = at->second;
            if (end > range.begin && is_wanted(id)) return id;
        }
        return none;
    }

private:
    struct Entry {
        std::uintptr_t end;
        Id id;
    };
    using Ranges = std::multimap<std::uintptr_t, Entry, Before>;

    [[nodiscard]] typename Ranges::const_iterator first_before(const MemoryRange& range) const {
        if (each_ == Each::kAnywhere) {
            return ranges_.upper_bound(range.begin > longest_ ? range.begin - longest_ : 0);
        }
        const auto at = ranges_.upper_bound(range.begin);
        return at == ranges_.begin() ? at : std::prev(at);
    }

    Each each_;
    Ranges ranges_;
    std::uintptr_t longest_ = 0;  // bytes: how far before a range one may begin that reaches into it
};
using MemoryRanges = BasicMemoryRanges<std::less<>>;

}  // namespace flashoptim
