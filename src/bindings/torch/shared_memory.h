// Which tensors have memory in common, and copies that share it in the same way. No modules here.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::libtorch {

/// The numbers of the tensors, together where they have elements in common. Tensors are told apart by
/// storage, offset, shape and strides; empty ones, and those that are no window onto memory (sparse), have
/// something in common only with themselves.
std::vector<std::vector<std::size_t>> sharing(const std::vector<torch::Tensor>& tensors);

/// Calls `take(n, copy)` with a copy of each tensor in another dtype. The copies have the shapes and strides
/// of the given ones and share memory as they do. One piece of memory is copied after the other, so that old
/// and new never exist together.
void copy_as(const std::vector<torch::Tensor>& tensors, torch::Dtype dtype,
             const std::function<void(std::size_t, const torch::Tensor&)>& take);

}  // namespace flashoptim::libtorch
