// Reads gradients of any dtype as fp32 and scales them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flashoptim/dtype.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/float16.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Reads `size` elements and multiplies them by `factor`. `size` is a multiple of the lanes' width.
template <class L>
FLASHOPTIM_INLINE void read_gradient(const std::byte* from, DType dtype, float factor, int size, float* to) {
    const auto scale = L::broadcast(factor);
    switch (dtype) {
        case DType::kBFloat16:
            for (int e = 0; e < size; e += L::kWidth) {
                const auto bits = L::load_u16(reinterpret_cast<const std::uint16_t*>(from) + e);
                L::store_f32(to + e, bfloat16_to_float<L>(bits) * scale);
            }
            break;
        case DType::kFloat16:
            for (int e = 0; e < size; e += L::kWidth) {
                const auto bits = L::load_u16(reinterpret_cast<const std::uint16_t*>(from) + e);
                L::store_f32(to + e, float16_to_float<L>(bits) * scale);
            }
            break;
        default:
            for (int e = 0; e < size; e += L::kWidth) {
                L::store_f32(to + e, L::load_f32(reinterpret_cast<const float*>(from) + e) * scale);
            }
    }
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA
