// The layout of a tensor: its rows, its groups, and the index of an element on which the dither depends.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "flashoptim/format/groups.h"
#include "flashoptim/tensor_view.h"

namespace flashoptim {

/// A dense tensor, or a rectangular shard of one, seen as rows in memory order (docs/formats.md, Groups).
///
/// Dimensions are sorted by stride, descending. Dimensions of extent 1 in the whole tensor are left out. If
/// two or more dimensions remain, the length of a row is the product of all but the first; otherwise the
/// tensor is one row. Element e of this part lies `e` elements behind the data pointer, in row e /
/// row_length. Its index in the whole tensor is (row_offset + e / row_length) * whole_row_length +
/// column_offset + e % row_length.
struct Layout {
    std::int64_t numel = 0;             ///< elements of this part
    std::int64_t rows = 0;              ///< rows of this part
    std::int64_t row_length = 0;        ///< elements of a row of this part
    std::int64_t whole_numel = 0;       ///< elements of the whole tensor
    std::int64_t whole_row_length = 0;  ///< elements of a row of the whole tensor
    std::int64_t row_offset = 0;        ///< first row of this part in the whole tensor
    std::int64_t column_offset = 0;     ///< first element of this part in a row of the whole tensor
    bool one_dimensional = true;        ///< at most one dimension is larger than 1
    /// Strides of this part in elements, as given. State that was saved with other strides is converted when
    /// it is loaded.
    std::vector<std::int64_t> strides;

    /// Groups of 32 in one row of this part.
    [[nodiscard]] std::int64_t groups_per_row() const { return (row_length + kGroupSize - 1) / kGroupSize; }
    /// Whether this part begins or ends inside a group of the whole tensor. Only a vector may, if its moments
    /// are fp32.
    [[nodiscard]] bool splits_groups() const;

    bool operator==(const Layout&) const = default;
};

/// The layout of `tensor`. `name` is used in messages.
/// @throws InvalidArgument if the tensor is not dense (expanded, overlapping, with holes), an extent or a
///         stride is negative, or the tensor has more than 2^60 elements (extents of 0 counted as 1).
Layout layout_of(const TensorView& tensor, std::string_view name = "tensor");
/// The layout of `tensor` as a shard of a larger tensor. A vector may be cut anywhere; plan_storage() refuses
/// that if its moments would be quantized.
/// @throws InvalidArgument as above, and if the pieces of a row do not begin at multiples of 32 of that row
///         or are not contiguous.
Layout layout_of(const TensorView& tensor, const Shard& shard, std::string_view name = "tensor");

/// Row-major strides of a shape, in elements.
std::vector<std::int64_t> row_major_strides(const std::vector<std::int64_t>& shape);

/// Whether strides `a` and `b` of the same shape put each element at the same place. Always true for an empty
/// tensor.
bool same_memory_order(std::span<const std::int64_t> shape, std::span<const std::int64_t> a,
                       std::span<const std::int64_t> b);

/// Copies a tensor into another memory order. Addresses need no alignment.
/// @param from       any strides, which must be given; expanded dimensions are allowed
/// @param to_strides strides of the copy in elements; shape and dtype are those of `from`
/// @param to         the caller's memory, large enough for `to_strides`
/// @throws InvalidArgument if there are not as many strides as dimensions.
void copy_in_order(const TensorView& from, const std::vector<std::int64_t>& to_strides, void* to);

}  // namespace flashoptim

#endif
