// The dither: a low-discrepancy sequence in the step count and the element's place. It depends on the
// element's index in the whole tensor only, so results do not depend on how a tensor is cut into shards.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim {

constexpr int kDitherPeriod = 512;
constexpr std::uint32_t kDitherSaltWeight = 0U;

/// u = 1/2: rounding to nearest. All encoding outside a step uses it.
constexpr std::uint32_t kNearestDither = 0x80000000U;

}  // namespace flashoptim

namespace flashoptim::inline FLASHOPTIM_ISA {

/// The salt of moment n. It gives the moments of one step different dither.
FLASHOPTIM_INLINE constexpr std::uint32_t dither_salt_of_moment(int n) {
    switch (n) {
        case 0:
            return 0x55555555U;  // 2^32 / 3
        case 1:
            return 0xAAAAAAABU;  // 2^33 / 3
        case 2:
            return 0x80000000U;  // 2^31
        default:
            return 0x2AAAAAABU;  // 2^31 / 3
    }
}

/// The 32 dither bits of an element in step `step` (1 in the first step). `place` is the element's index in
/// the whole tensor, modulo 512.
FLASHOPTIM_INLINE std::uint32_t dither_bits(std::uint32_t step, std::uint32_t place, std::uint32_t salt) {
    constexpr std::uint32_t kStepIncrement = 0x9E3779B9U;   // 2^32 / golden ratio
    constexpr std::uint32_t kPlaceIncrement = 0xC13FA9A9U;  // 2^32 / plastic number
    return step * kStepIncrement + place * kPlaceIncrement + salt;
}

/// u in [0, 1) from the top 15 bits, as the bits of the float 256 + u (whose spacing is 2^-15).
FLASHOPTIM_INLINE std::uint32_t dither_above_256(std::uint32_t bits) { return 0x43800000U | (bits >> 17U); }
/// The same, as the bits of the float 384 + u.
FLASHOPTIM_INLINE std::uint32_t dither_above_384(std::uint32_t bits) { return 0x43C00000U | (bits >> 17U); }

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
