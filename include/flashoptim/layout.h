// How a tensor's elements are counted: rows, groups and the index that the dither depends on.
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

/// A dense tensor (or a rectangular shard of one) seen as rows in memory order.
///
/// Dimensions are sorted by stride, descending; those of extent 1 in the whole tensor are left out. A tensor of two or more
/// such dimensions is rows of the product of all but the first; others are one row. Element e of this part lies `e` elements
/// behind the data pointer, in row e / row_length; its index in the whole tensor is
/// (row_offset + e / row_length) * whole_row_length + column_offset + e % row_length.
struct Layout {
    std::int64_t numel = 0;
    std::int64_t rows = 0;
    std::int64_t row_length = 0;
    std::int64_t whole_numel = 0;
    std::int64_t whole_row_length = 0;
    std::int64_t row_offset = 0;
    std::int64_t column_offset = 0;
    bool one_dimensional = true;  // at most one dimension larger than 1
    std::vector<std::int64_t>
        strides;  // of this part, as given; state saved under other strides is converted on load

    /// Groups of 32 in one row of this part.
    [[nodiscard]] std::int64_t groups_per_row() const { return (row_length + kGroupSize - 1) / kGroupSize; }
    /// Whether this part begins or ends inside a group of the whole tensor: a vector may, where its moments have no groups.
    [[nodiscard]] bool splits_groups() const;

    bool operator==(const Layout&) const = default;
};

/// The layout of `tensor`; `name` is used in errors.
/// @throws InvalidArgument if the tensor is not dense (expanded, overlapping, with holes), a shape or stride is negative, it
///         or its whole has more than 2^60 elements (extents of 0 counted as 1), or a shard's pieces of a row do not begin at multiples of 32 of that row or do not lie together. A vector may be cut
///         anywhere: plan_storage refuses that where its moments would be quantized.
Layout layout_of(const TensorView& tensor, std::string_view name = "tensor");
Layout layout_of(const TensorView& tensor, const Shard& shard, std::string_view name = "tensor");

/// Row-major strides of a shape.
std::vector<std::int64_t> row_major_strides(const std::vector<std::int64_t>& shape);

/// Whether tensors of this shape with strides `a` and `b`, one for each dimension, have their elements in the same places (empty
/// ones always have).
bool same_memory_order(std::span<const std::int64_t> shape, std::span<const std::int64_t> a,
                       std::span<const std::int64_t> b);

/// Copies the elements of `from` (any strides, which must be given; also expanded) to a tensor at `to` of the same shape and
/// dtype with strides `to_strides`. Nothing has to be aligned. The caller sees to it that strides lead to memory of his.
/// @throws InvalidArgument for another number of strides than dimensions.
void copy_in_order(const TensorView& from, const std::vector<std::int64_t>& to_strides, void* to);

}  // namespace flashoptim

#endif
