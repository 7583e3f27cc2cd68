// The element types of tensors and state buffers, their sizes and names.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "flashoptim/numeric/compiler.h"

namespace flashoptim {

/// Element type of a tensor or a state buffer. Weights and gradients are floating, codes and corrections are
/// integers.
enum class DType : std::uint8_t { kFloat32, kBFloat16, kFloat16, kInt8, kUInt8, kInt16 };

/// Bytes of one element. Always inlined, because kernels for several instruction sets use it and must not
/// share a copy.
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

/// The name of a type as NumPy and PyTorch spell it: "float32", "bfloat16", ...
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
