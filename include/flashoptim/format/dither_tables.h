// The dither of all elements in one step. It is computed once for each step count and read by every tensor.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/format/moments.h"
#include "flashoptim/numeric/dither.h"

namespace flashoptim {

/// The dither of one step count, for weights and for each moment. A table holds two periods, so that a block
/// of one period may begin anywhere in the first.
struct DitherTables {
    static constexpr int kEntries = 2 * kDitherPeriod;
    /// The tables are read at the same index. Without the gap they would lie a multiple of 4 KiB apart, and
    /// the processor would take loads and stores at such distances for the same address (4K aliasing).
    struct alignas(64) Table {
        std::uint32_t entry[kEntries];
        std::uint32_t gap[176];
    };
    Table weight8;              // top 8 bits of dither_bits, plus 2^15: half a unit of a 16-bit weight
    Table moment[kMaxMoments];  // dither_of_code; one table for each moment of the rule
    Table weight16;             // top 16 bits of dither_bits
    Table weight;               // dither_bits
};

}  // namespace flashoptim

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Dither bits in the form in which the encoder of this kind of moment adds them.
FLASHOPTIM_INLINE std::uint32_t dither_of_code(MomentKind kind, std::uint32_t bits) {
    if (kind == MomentKind::kSlow || kind == MomentKind::kGradient) return bits >> 16U;
    return kind == MomentKind::kSquared ? dither_above_256(bits) : dither_above_384(bits);
}

/// Fills `tables` for the step count `step`. `kinds` are the kinds of the rule's `count` moments.
FLASHOPTIM_INLINE void fill_dither_tables(DitherTables& tables, std::int64_t step, const MomentKind* kinds,
                                          int count) {
    const auto t = static_cast<std::uint32_t>(step);
    for (int n = 0; n < DitherTables::kEntries; ++n) {
        const auto bits = dither_bits(t, static_cast<std::uint32_t>(n % kDitherPeriod), kDitherSaltWeight);
        tables.weight.entry[n] = bits;
        tables.weight8.entry[n] = (bits >> 24U) + 0x8000U;
        tables.weight16.entry[n] = bits >> 16U;
    }
    for (int m = 0; m < count; ++m) {
        const auto salt = dither_salt_of_moment(m);
        for (int n = 0; n < DitherTables::kEntries; ++n) {
            tables.moment[m].entry[n] = dither_of_code(kinds[m], tables.weight.entry[n] + salt);
        }
    }
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
