// bfloat16: the storage type and its conversions (exact; round to nearest, ties to even). No arithmetic.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// The fp32 value of the bfloat16 in the low 16 bits of each lane. Exact for every pattern.
template <class L>
FLASHOPTIM_INLINE typename L::Float bfloat16_to_float(typename L::UInt bits) {
    return L::from_bits(bits << 16U);
}

/// The bfloat16 nearest to each fp32 value, ties to even. Overflow gives Inf. A NaN becomes the quiet NaN of
/// its sign.
template <class L>
FLASHOPTIM_INLINE typename L::UInt float_to_bfloat16(typename L::Float value) {
    const auto bits = L::bits(value);
    const auto rounded = (bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U;
    const auto quiet_nan = (bits >> 16U) | 0x7fc0U;
    return L::select_bits(is_nan<L>(value), quiet_nan & 0xffc0U, rounded);
}

/// A bfloat16 in memory.
struct bfloat16 {
    std::uint16_t bits = 0;

    bfloat16() = default;
    explicit FLASHOPTIM_INLINE bfloat16(float value)
        : bits(static_cast<std::uint16_t>(float_to_bfloat16<ScalarLanes>(value))) {}
    explicit FLASHOPTIM_INLINE operator float() const { return bfloat16_to_float<ScalarLanes>(bits); }
    static FLASHOPTIM_INLINE bfloat16 from_bits(std::uint16_t pattern) {
        bfloat16 result;
        result.bits = pattern;
        return result;
    }
};
static_assert(sizeof(bfloat16) == 2);

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
