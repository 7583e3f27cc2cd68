// Finds tensors that share memory, and copies them so that the copies share it alike. Knows no modules.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::libtorch {

/// Groups the indices of tensors that have elements in common, by storage, offset, shape and strides. A
/// tensor without elements, and one that is not strided (sparse), shares memory only with itself.
std::vector<std::vector<std::size_t>> sharing(const std::vector<torch::Tensor>& tensors);

/// Calls `take(n, copy)` with a copy of each tensor in another dtype. The copies have the same shapes and
/// strides, and share memory as the originals do. Blocks of memory are copied one after the other, so that
/// the old and the new model never exist as a whole at the same time.
void copy_as(const std::vector<torch::Tensor>& tensors, torch::Dtype dtype,
             const std::function<void(std::size_t, const torch::Tensor&)>& take);

}  // namespace flashoptim::libtorch
