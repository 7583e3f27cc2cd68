// Torch tensors as the core sees them, and back. What is done with them never stands here.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "flashoptim/dtype.h"
#include "flashoptim/libtorch_headers.h"
#include "flashoptim/tensor_view.h"

namespace flashoptim::libtorch {

/// The core's name of a dtype; none if the core does not have it.
std::optional<DType> dtype_of(torch::Dtype dtype);
torch::Dtype torch_dtype_of(DType dtype);

/// float32, bfloat16 and float16: what weights and gradients may be.
bool is_steppable(torch::Dtype dtype);

/// "bfloat16", "int64", ... as PyTorch spells them.
std::string name_of(torch::Dtype dtype);
/// "bfloat16 [4, 5]".
std::string describe(const torch::Tensor& tensor);
std::string describe(at::IntArrayRef sizes);

/// View of a strided tensor of one of the core's dtypes.
TensorView view_of(const torch::Tensor& tensor);

/// Whether the tensor begins at a multiple of its elements' size, as what computes with them needs.
bool is_aligned(const torch::Tensor& tensor);

/// The values in aligned memory of these strides and dtype: the tensor itself if it lies so, else a copy.
torch::Tensor in_order(const torch::Tensor& values, at::IntArrayRef strides, torch::Dtype dtype);

/// The tensor itself if it is there, else a copy with the same strides; undefined for an undefined one.
torch::Tensor on_device(const torch::Tensor& tensor, const torch::Device& device);

/// The memory of a dense tensor on the CPU; nothing of an undefined one.
template <class T>
std::span<T> memory_of(const torch::Tensor& tensor) {
    if (!tensor.defined()) return {};
    return {static_cast<T*>(tensor.data_ptr()), tensor.nbytes() / sizeof(T)};
}

}  // namespace flashoptim::libtorch
