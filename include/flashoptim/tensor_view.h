// A tensor of the caller: where it lies, its type, shape and strides. Views own nothing and are never kept beyond what the
// function that takes one says.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <utility>
#include <vector>

#include "flashoptim/dtype.h"

namespace flashoptim {

/// A dense tensor in the caller's memory. Strides are in elements; left empty they are those of a row-major tensor.
struct TensorView {
    void* data = nullptr;
    DType dtype = DType::kFloat32;
    std::vector<std::int64_t> shape{};
    std::vector<std::int64_t> strides{};

    /// Product of the shape; 1 for a 0-dimensional tensor.
    /// @throws InvalidArgument for a negative extent, or a product of the extents that are not 0 that 63 bits do not hold.
    [[nodiscard]] std::int64_t numel() const;
};

/// Which part of a larger tensor a parameter is. Dither and groups are counted in the whole tensor, so that the same
/// gradients give the same bits however it is cut.
struct Shard {
    std::vector<std::int64_t> whole_shape{};
    std::vector<std::int64_t> whole_strides{};  // empty: row-major
    std::vector<std::int64_t> offset{};         // index of the shard's first element in the whole tensor
};

}  // namespace flashoptim

#endif
