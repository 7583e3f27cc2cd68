// What tells a weight that overlaps another from one that does not. If these fail, adding the tensors of a large model takes minutes, or
// one tensor's step writes over another's.
#include "optimizer/memory_ranges.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace flashoptim {

namespace {

/// Counts what is compared.
struct CountingBefore {
    std::int64_t* comparisons;
    bool operator()(std::uintptr_t a, std::uintptr_t b) const {
        ++*comparisons;
        return a < b;
    }
};
using CountingRanges = BasicMemoryRanges<CountingBefore>;

constexpr std::size_t kNone = ~std::size_t{0};
const auto kAny = [](std::size_t) { return true; };

}  // namespace

TEST(MemoryRanges, ComparisonsGrowAsTheLogarithm) {
    constexpr std::size_t kCount = 100'000, kBytes = 128;
    // Two searches in a red-black tree, at most twice as deep as a balanced one.
    const std::int64_t most_for_one = 2 * 2 * std::bit_width(kCount) + 8;
    for (const auto each : {MemoryRanges::Each::kApart, MemoryRanges::Each::kAnywhere}) {
        std::int64_t comparisons = 0;
        CountingRanges ranges(each == MemoryRanges::Each::kApart ? CountingRanges::Each::kApart
                                                                 : CountingRanges::Each::kAnywhere,
                              CountingBefore{&comparisons});
        for (std::size_t n = 0; n < kCount; ++n) {
            // Neighbours, far apart in time; a factor that shares no divisor with the count meets each place once.
            const auto begin = 4096 + n * 40'503 % kCount * kBytes;
            const auto before = comparisons;
            EXPECT_EQ(ranges.find_overlap({begin, begin + kBytes}, kNone, kAny), kNone);
            ranges.add({begin, begin + kBytes}, n);
            EXPECT_LE(comparisons - before, most_for_one);
        }
    }
}

TEST(MemoryRanges, FindsEveryOverlapAndNoOther) {
    MemoryRanges ranges(MemoryRanges::Each::kApart);
    std::vector<std::size_t> owner_of_byte(400, kNone);
    const std::pair<std::size_t, std::size_t> taken[] = {{100, 10},  {110, 1}, {50, 20},
                                                         {200, 100}, {90, 10}, {30, 0}};
    std::size_t owner = 0;
    for (const auto& [begin, bytes] : taken) {
        ASSERT_EQ(ranges.find_overlap({begin, begin + bytes}, kNone, kAny), kNone);
        ranges.add({begin, begin + bytes}, owner);
        std::fill_n(owner_of_byte.begin() + static_cast<std::ptrdiff_t>(begin), bytes, owner);
        ++owner;
        for (std::size_t first = 1; first < 320; ++first) {
            for (const std::size_t length : {0, 1, 2, 9, 10, 11, 50}) {
                const auto own = owner_of_byte.begin() + static_cast<std::ptrdiff_t>(first);
                const auto end = own + static_cast<std::ptrdiff_t>(length);
                const auto found = ranges.find_overlap({first, first + length}, kNone, kAny);
                const bool is_free = std::all_of(own, end, [](std::size_t o) { return o == kNone; });
                ASSERT_EQ(found == kNone, is_free) << first << " " << length;
                if (!is_free) {
                    EXPECT_NE(std::find(own, end, found), end);
                }
            }
        }
    }
}

}  // namespace flashoptim
