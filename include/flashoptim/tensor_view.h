// A tensor in the caller's memory: address, type, shape and strides. A view owns nothing.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <utility>
#include <vector>

#include "flashoptim/dtype.h"

namespace flashoptim {

/// A tensor in the caller's memory.
struct TensorView {
    void* data = nullptr;                 ///< address of the first element
    DType dtype = DType::kFloat32;        ///< element type
    std::vector<std::int64_t> shape{};    ///< extents; empty: one element
    std::vector<std::int64_t> strides{};  ///< in elements; empty: row-major

    /// Number of elements: the product of the shape, 1 for a 0-dimensional tensor.
    /// @throws InvalidArgument for a negative extent, or if the product of the extents other than 0 exceeds
    ///         63 bits.
    [[nodiscard]] std::int64_t numel() const;
};

/// Which part of a larger tensor a parameter is. Dither and groups are counted in the whole tensor, so that a
/// step gives the same bits however the tensor is cut.
struct Shard {
    std::vector<std::int64_t> whole_shape{};    ///< shape of the whole tensor
    std::vector<std::int64_t> whole_strides{};  ///< its strides in elements; empty: row-major
    std::vector<std::int64_t> offset{};         ///< index of the shard's first element in the whole tensor
};

}  // namespace flashoptim

#endif
