// The dither: a low-discrepancy sequence in the step count and the element's place, and its table for one
// step. It depends on the element's index in the whole tensor only, so results do not depend on how a tensor
// is cut.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim {

constexpr int kDitherPeriod = 512;
constexpr std::uint32_t kDitherSaltWeight = 0U;
constexpr std::uint32_t kDitherSaltFirst = 0x55555555U;
constexpr std::uint32_t kDitherSaltSecond = 0xAAAAAAABU;

/// u = 1/2, that is rounding to nearest, for whatever is encoded outside a step.
constexpr std::uint32_t kNearestDither = 0x80000000U;

/// All dither of one step count, shared by every tensor of that count. A table has two periods, so that a
/// block of one period may begin anywhere in the first. The gaps keep the tables from lying 4 KiB apart: they
/// are read at the same index, and a processor confuses loads and stores whose addresses differ by 4 KiB
/// (aliasing).
struct DitherTables {
    static constexpr int kEntries = 2 * kDitherPeriod;
    alignas(64) std::uint32_t weight[kEntries];  // dither_bits
    std::uint32_t gap1[176];
    alignas(64) std::uint32_t first[kEntries];  // dither_above_384
    std::uint32_t gap2[176];
    alignas(64) std::uint32_t second[kEntries];  // dither_above_256
    std::uint32_t gap3[176];
    alignas(64) std::uint32_t
        weight8[kEntries];  // the top 8 of dither_bits, plus 2^15: half a unit of a 16-bit weight
    alignas(64) std::uint32_t weight16[kEntries];  // the top 16 of dither_bits
};

}  // namespace flashoptim

namespace flashoptim::inline FLASHOPTIM_ISA {

/// 32 dither bits of the element `place` (index in the whole tensor mod 512) in step `step` (1 in the first
/// step).
FLASHOPTIM_INLINE std::uint32_t dither_bits(std::uint32_t step, std::uint32_t place, std::uint32_t salt) {
    constexpr std::uint32_t kStepIncrement = 0x9E3779B9U;   // 2^32 / golden ratio
    constexpr std::uint32_t kPlaceIncrement = 0xC13FA9A9U;  // 2^32 / plastic number
    return step * kStepIncrement + place * kPlaceIncrement + salt;
}

/// u in [0, 1) from the top 15 bits, as the bits of the float 256 + u (whose spacing is 2^-15).
FLASHOPTIM_INLINE std::uint32_t dither_above_256(std::uint32_t bits) { return 0x43800000U | (bits >> 17U); }
/// The same as 384 + u.
FLASHOPTIM_INLINE std::uint32_t dither_above_384(std::uint32_t bits) { return 0x43C00000U | (bits >> 17U); }

/// Fills `tables` for the step count `step`.
FLASHOPTIM_INLINE void fill_dither_tables(DitherTables& tables, std::int64_t step) {
    const auto t = static_cast<std::uint32_t>(step);
    for (int n = 0; n < DitherTables::kEntries; ++n) {
        const auto place = static_cast<std::uint32_t>(n % kDitherPeriod);
        tables.weight[n] = dither_bits(t, place, kDitherSaltWeight);
        tables.weight8[n] = (tables.weight[n] >> 24U) + 0x8000U;
        tables.weight16[n] = tables.weight[n] >> 16U;
        tables.first[n] = dither_above_384(dither_bits(t, place, kDitherSaltFirst));
        tables.second[n] = dither_above_256(dither_bits(t, place, kDitherSaltSecond));
    }
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
