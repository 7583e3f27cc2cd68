// How a weight that overlaps another is found. If these fail, adding the tensors of a large model takes
// minutes, or one tensor's step writes over another's.
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
            // Neighbours, far apart in time; a factor that shares no divisor with the
            // count meets each place once.
            const auto begin = 4096 + n * 40'503 % kCount * kBytes;
            const auto before = comparisons;
            EXPECT_EQ(ranges.find_overlap({begin, begin + kBytes}, kNone, kAny), kNone);
            ranges.add({begin, begin + kBytes}, n);
            EXPECT_LE(comparisons - before, most_for_one);
        }
    }
}

// Gradients may lie anywhere: beside a much longer one, all in one buffer, or given back in
// another order than they came.
TEST(MemoryRanges, ComparisonsDoNotGrowWithLongAndSharedRanges) {
    constexpr std::size_t kCount = 100'000, kBytes = 128, kLong = std::size_t{1} << 30;
    const std::int64_t most_for_one = 2 * 3 * 2 * std::bit_width(kCount) + 16;  // in each class of lengths
    for (const std::size_t stride : {std::size_t{0}, kBytes}) {
        std::int64_t comparisons = 0, most = 0;
        CountingRanges ranges(CountingRanges::Each::kAnywhere, CountingBefore{&comparisons});
        const auto count = [&](auto act) {
            const auto before = comparisons;
            act();
            most = std::max(most, comparisons - before);
        };
        std::size_t looked_at = 0;
        const auto never = [&](std::size_t) { return ++looked_at == 0; };
        const auto range_at = [&](std::size_t n) {
            return MemoryRange{kLong + n * stride, kLong + n * stride + kBytes};
        };
        ranges.add({4096, kLong}, kCount);
        for (std::size_t n = 0; n < kCount; ++n) count([&] { ranges.add(range_at(n), n); });
        const auto end = kLong + (kCount - 1) * stride + kBytes;
        for (std::size_t n = 0; n < kCount; ++n) {  // weights behind the gradients
            count([&] { ranges.find_overlap({end + n * kBytes, end + (n + 1) * kBytes}, kNone, never); });
        }
        EXPECT_EQ(looked_at, 0U);
        for (std::size_t n = kCount; n-- > 0;) count([&] { ranges.remove(range_at(n), n); });
        EXPECT_LE(most, most_for_one) << stride;
        EXPECT_EQ(ranges.find_overlap({kLong, end}, kNone, kAny), kNone);
        EXPECT_EQ(ranges.find_overlap({kLong - 1, end}, kNone, kAny), kCount);
    }
}

// The same against a list of all: ranges of every length, one over another, added, replaced and taken away.
TEST(MemoryRanges, FindsWhatAListOfAllFinds) {
    MemoryRanges ranges(MemoryRanges::Each::kAnywhere);
    std::vector<MemoryRange> all(60);
    std::uint32_t random = 1;
    const auto below = [&](std::uint32_t end) {
        random = random * 1664525U + 1013904223U;  // Numerical Recipes' generator
        return std::uintptr_t{(random >> 8U) % end};
    };
    for (int turn = 0; turn < 3000; ++turn) {
        const auto id = static_cast<std::size_t>(below(60));
        const auto begin = 100 + below(300);
        const MemoryRange now{begin, begin + (below(4) == 0 ? below(200) : below(5))};
        if (now != all[id]) {
            ranges.add(now, id);
            ranges.remove(all[id], id);
            all[id] = now;
        }
        const auto from = 1 + below(600);
        const MemoryRange wanted{from, from + below(30)};
        std::vector<std::size_t> found, expected;
        ranges.find_overlap(wanted, kNone, [&](std::size_t n) {
            found.push_back(n);
            return false;
        });
        std::sort(found.begin(), found.end());
        for (std::size_t n = 0; n < all.size(); ++n) {
            if (!wanted.empty() && !all[n].empty() && all[n].overlaps(wanted)) expected.push_back(n);
        }
        ASSERT_EQ(found, expected) << turn;
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
