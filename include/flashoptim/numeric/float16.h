// IEEE binary16: the storage type and its conversions (exact; round to nearest, ties to even). No arithmetic.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// The fp32 value of the binary16 in the low 16 bits of each lane. Exact for every pattern; a NaN keeps its
/// payload.
template <class L>
FLASHOPTIM_INLINE typename L::Float float16_to_float(typename L::UInt bits) {
    const auto magnitude = bits & 0x7fffU;
    // The shift moves exponent and fraction into place. The product with 2^112 changes the exponent's bias
    // from 15 to 127, also for subnormals.
    const auto scaled = L::bits(L::from_bits(magnitude << 13U) * L::broadcast(0x1p112F));
    const auto special = L::less_bits(L::broadcast_bits(0x7bffU), magnitude);
    const auto value = L::select_bits(special, kInfinityBits | (magnitude << 13U), scaled);
    return L::from_bits(value | ((bits & 0x8000U) << 16U));
}

/// The binary16 nearest to each fp32 value, ties to even. Overflow gives Inf. A NaN becomes the quiet NaN of
/// its sign.
template <class L>
FLASHOPTIM_INLINE typename L::UInt float_to_float16(typename L::Float value) {
    constexpr std::uint32_t kSmallestNormal = 0x38800000U;  // 2^-14
    constexpr std::uint32_t kRebias = 0x38000000U;          // (127 - 15) << 23
    const auto bits = L::bits(value);
    const auto magnitude = bits & kMagnitudeBits;
    const auto normal = (magnitude - kRebias + 0xfffU + ((magnitude >> 13U) & 1U)) >> 13U;
    // Below 2^-14 the spacing of binary16 is 2^-24, the spacing of fp32 at 1/2. So the addition rounds.
    const auto subnormal = L::bits(L::from_bits(magnitude) + L::broadcast(0.5F)) - 0x3f000000U;
    auto result =
        L::select_bits(L::less_bits(magnitude, L::broadcast_bits(kSmallestNormal)), subnormal, normal);
    result = L::min_bits(result, L::broadcast_bits(0x7c00U));
    const auto overflow = L::less_bits(L::broadcast_bits(0x477fffffU), magnitude);
    result = L::select_bits(overflow, L::broadcast_bits(0x7c00U), result);
    result = L::select_bits(is_nan<L>(value), L::broadcast_bits(0x7e00U), result);
    return result | ((bits >> 16U) & 0x8000U);
}

/// A binary16 in memory.
struct float16 {
    std::uint16_t bits = 0;

    float16() = default;
    explicit FLASHOPTIM_INLINE float16(float value)
        : bits(static_cast<std::uint16_t>(float_to_float16<ScalarLanes>(value))) {}
    explicit FLASHOPTIM_INLINE operator float() const { return float16_to_float<ScalarLanes>(bits); }
    static FLASHOPTIM_INLINE float16 from_bits(std::uint16_t pattern) {
        float16 result;
        result.bits = pattern;
        return result;
    }
};
static_assert(sizeof(float16) == 2);

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
