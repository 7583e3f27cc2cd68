// Reads the shape and strides of a tensor as rows. Refuses tensors that are not dense and shards that are not
// cut at groups. Also copies tensors between memory orders.
#include "flashoptim/layout.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "flashoptim/error.h"
#include "flashoptim/system/checked_arithmetic.h"

namespace flashoptim {

namespace {

/// Limit of the elements of a tensor and of the whole tensor of a shard. It is far more than any memory
/// holds. It is also small enough that 64-bit counts of bytes, groups and rows need no overflow check.
constexpr std::int64_t kMostElements = std::int64_t{1} << 60;

std::string to_text(const std::vector<std::int64_t>& values) {
    std::string text = "[";
    for (std::size_t n = 0; n < values.size(); ++n) text += (n == 0 ? "" : ", ") + std::to_string(values[n]);
    return text + "]";
}

[[noreturn]] void refuse(std::string_view name, const TensorView& tensor, const std::string& why) {
    throw InvalidArgument(std::string(name) + " of shape " + to_text(tensor.shape) + " and strides " +
                          to_text(tensor.strides) + " " + why);
}

/// The dimensions whose extent in the whole tensor is not 1, sorted by stride, descending. Equal strides keep
/// their order.
std::vector<std::size_t> memory_order(const std::vector<std::int64_t>& extents,
                                      const std::vector<std::int64_t>& strides) {
    std::vector<std::size_t> order;
    for (std::size_t d = 0; d < extents.size(); ++d) {
        if (extents[d] != 1) order.push_back(d);
    }
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return strides[a] > strides[b]; });
    return order;
}

/// Whether the elements have no holes and no overlaps in this order of dimensions.
bool is_dense(const std::vector<std::size_t>& order, const TensorView& tensor) {
    std::int64_t expected = 1;
    for (auto d = order.rbegin(); d != order.rend(); ++d) {
        if (tensor.shape[*d] != 1 && tensor.strides[*d] != expected) return false;
        expected *= tensor.shape[*d];
    }
    return true;
}

std::int64_t product(const std::vector<std::int64_t>& extents) {
    return std::accumulate(extents.begin(), extents.end(), std::int64_t{1}, std::multiplies<>());
}

void check_extents(const TensorView& tensor, const std::vector<std::int64_t>& whole, std::string_view name) {
    if (tensor.strides.size() != tensor.shape.size()) {
        refuse(name, tensor, "has another number of strides than dimensions: give one stride for each");
    }
    for (const auto extent : tensor.shape) {
        if (extent < 0) refuse(name, tensor, "has a negative extent: give extents of at least 0");
    }
    for (const auto extent : whole) {
        if (extent < 0) {
            refuse(name, tensor,
                   "is a part of " + to_text(whole) +
                       ", which has a negative extent: give extents of at least 0");
        }
    }
    for (const auto& shape : {tensor.shape, whole}) {
        auto extents = shape;
        std::replace(extents.begin(), extents.end(), std::int64_t{0}, std::int64_t{1});
        const auto numel = checked_numel(extents);
        if (numel && *numel <= kMostElements) continue;
        refuse(name, tensor,
               "has more than 2^60 elements, or its whole has, and bytes are counted up to 2^63: check the "
               "shape " +
                   to_text(shape));
    }
}

}  // namespace

std::int64_t TensorView::numel() const {
    if (const auto numel = checked_numel(shape)) return *numel;
    throw InvalidArgument("a tensor of shape " + to_text(shape) +
                          " has a negative extent or more than 2^63 elements: check the shape");
}

std::vector<std::int64_t> row_major_strides(const std::vector<std::int64_t>& shape) {
    std::vector<std::int64_t> strides(shape.size());
    std::uint64_t stride = 1;  // unsigned, so that it may wrap: layout_of() refuses such a shape
    for (std::size_t d = shape.size(); d-- > 0;) {
        strides[d] = static_cast<std::int64_t>(stride);
        stride *= static_cast<std::uint64_t>(std::max<std::int64_t>(shape[d], 1));
    }
    return strides;
}

bool Layout::splits_groups() const {
    const auto end = column_offset + row_length;
    return numel > 0 &&
           (column_offset % kGroupSize != 0 || (end % kGroupSize != 0 && end != whole_row_length));
}

Layout layout_of(const TensorView& tensor, std::string_view name) {
    return layout_of(
        tensor, Shard{tensor.shape, tensor.strides, std::vector<std::int64_t>(tensor.shape.size(), 0)}, name);
}

Layout layout_of(const TensorView& given, const Shard& shard, std::string_view name) {
    TensorView tensor = given;
    const auto& whole = shard.whole_shape;
    if (tensor.strides.empty()) tensor.strides = row_major_strides(tensor.shape);
    check_extents(tensor, whole, name);
    const auto dims = tensor.shape.size();
    const auto whole_strides = shard.whole_strides.empty() ? row_major_strides(whole) : shard.whole_strides;
    if (whole.size() != dims || shard.offset.size() != dims || whole_strides.size() != dims) {
        refuse(name, tensor, "is a shard of a tensor with another number of dimensions, " + to_text(whole));
    }
    for (std::size_t d = 0; d < dims; ++d) {
        if (shard.offset[d] < 0 || tensor.shape[d] > whole[d] ||
            shard.offset[d] > whole[d] - tensor.shape[d]) {
            refuse(name, tensor,
                   "does not lie inside the whole tensor " + to_text(whole) + " at offset " +
                       to_text(shard.offset));
        }
    }

    Layout layout;
    layout.numel = product(tensor.shape);
    layout.whole_numel = product(whole);
    layout.strides = tensor.strides;
    const auto order = memory_order(whole, whole_strides);
    layout.one_dimensional = order.size() <= 1;
    if (layout.numel > 0 && !is_dense(order, tensor)) {
        refuse(name, tensor,
               "is not dense in memory (expanded, overlapping, with holes, or a shard in another stride "
               "order than its "
               "whole): step a contiguous copy instead");
    }
    // The columns are all dimensions but the first. A one-dimensional tensor is one row, so its only
    // dimension is a column.
    const std::size_t first_column = layout.one_dimensional ? 0 : 1;
    layout.whole_row_length = 1;
    layout.row_length = 1;
    bool partial = false;
    std::int64_t pieces = 1;
    for (std::size_t n = first_column; n < order.size(); ++n) {
        const auto d = order[n];
        layout.whole_row_length *= whole[d];
        layout.row_length *= tensor.shape[d];
        layout.column_offset = layout.column_offset * whole[d] + shard.offset[d];
        // After the first dimension with more than one index every dimension must be whole. Otherwise a row
        // of the shard would not be contiguous.
        if (tensor.shape[d] != whole[d] && pieces > 1) partial = true;
        pieces *= tensor.shape[d];
    }
    if (!layout.one_dimensional) {
        layout.row_offset = shard.offset[order[0]];
        layout.rows = tensor.shape[order[0]];
    } else {
        layout.rows = layout.numel > 0 ? 1 : 0;
    }
    if (layout.numel == 0) return layout;
    if (partial) {
        refuse(name, tensor,
               "cuts each row of the whole tensor " + to_text(whole) +
                   " into several pieces: shard it along its first dimensions in memory order");
    }
    if (!layout.one_dimensional && layout.splits_groups()) {
        refuse(name, tensor,
               "cuts a row of the whole tensor " + to_text(whole) + " at column " +
                   std::to_string(layout.column_offset) + " to " +
                   std::to_string(layout.column_offset + layout.row_length) +
                   ": cut rows at multiples of 32");
    }
    return layout;
}

bool same_memory_order(std::span<const std::int64_t> shape, std::span<const std::int64_t> a,
                       std::span<const std::int64_t> b) {
    if (a.size() != shape.size() || b.size() != shape.size()) return false;
    bool same = true;
    for (std::size_t d = 0; d < shape.size(); ++d) {
        if (shape[d] == 0) return true;
        same = same && (shape[d] == 1 || a[d] == b[d]);
    }
    return same;
}

void copy_in_order(const TensorView& from, const std::vector<std::int64_t>& to_strides, void* to) {
    const auto dims = from.shape.size();
    if (from.strides.size() != dims || to_strides.size() != dims) {
        refuse("a tensor", from,
               "is to be copied to strides " + to_text(to_strides) +
                   ": give one stride for each dimension of both");
    }
    const auto size = static_cast<std::int64_t>(size_of(from.dtype));
    std::vector<std::int64_t> index(dims, 0);
    std::int64_t source = 0, target = 0;
    for (std::int64_t left = from.numel(); left > 0; --left) {
        std::memcpy(static_cast<std::byte*>(to) + target * size,
                    static_cast<const std::byte*>(from.data) + source * size, static_cast<std::size_t>(size));
        for (std::size_t d = dims; d-- > 0;) {
            if (++index[d] < from.shape[d]) {
                source += from.strides[d];
                target += to_strides[d];
                break;
            }
            index[d] = 0;  // reset before the next carry, so that no offset leaves the tensor
            source -= from.strides[d] * (from.shape[d] - 1);
            target -= to_strides[d] * (from.shape[d] - 1);
        }
    }
}

}  // namespace flashoptim
