// The element types that tensors and state buffers have, their sizes and names.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "flashoptim/numeric/device.h"

namespace flashoptim {

enum class DType : std::uint8_t { kFloat32, kBFloat16, kFloat16, kInt8, kUInt8, kInt16 };

/// Bytes of one element. Kernels use it: it is inlined everywhere, so that no instruction set's copy is left for others.
FLASHOPTIM_INLINE constexpr std::size_t size_of(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return 4;
        case DType::kBFloat16:
        case DType::kFloat16:
        case DType::kInt16:
            return 2;
        case DType::kInt8:
        case DType::kUInt8:
            return 1;
    }
    return 0;
}

/// "float32", "bfloat16", ... as NumPy and PyTorch spell them.
constexpr std::string_view name_of(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return "float32";
        case DType::kBFloat16:
            return "bfloat16";
        case DType::kFloat16:
            return "float16";
        case DType::kInt8:
            return "int8";
        case DType::kUInt8:
            return "uint8";
        case DType::kInt16:
            return "int16";
    }
    return "unknown";
}

/// Whether a weight or a gradient may have this type: float32, bfloat16 and float16.
constexpr bool is_floating(DType dtype) { return dtype <= DType::kFloat16; }

}  // namespace flashoptim

#endif
