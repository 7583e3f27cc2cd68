// Converts between torch tensors and the core's types. Computes nothing.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "flashoptim/dtype.h"
#include "flashoptim/libtorch_headers.h"
#include "flashoptim/tensor_view.h"

namespace flashoptim::libtorch {

/// The core's enumerator of a dtype. Empty if the core does not have it.
std::optional<DType> dtype_of(torch::Dtype dtype);
torch::Dtype torch_dtype_of(DType dtype);

/// Whether weights and gradients may have this dtype: float32, bfloat16 or float16.
bool is_steppable(torch::Dtype dtype);

/// The name of a dtype as PyTorch spells it: "bfloat16", "int64".
std::string name_of(torch::Dtype dtype);
/// The dtype and shape of a tensor, as "bfloat16 [4, 5]".
std::string describe(const torch::Tensor& tensor);
std::string describe(at::IntArrayRef sizes);

/// The core's view of a strided tensor with one of the core's dtypes.
TensorView view_of(const torch::Tensor& tensor);

/// Whether the address of the tensor is a multiple of its element size, as the kernels need.
bool is_aligned(const torch::Tensor& tensor);

/// The tensor in aligned memory with these strides and this dtype: the tensor itself if it fits, else a copy.
torch::Tensor in_order(const torch::Tensor& values, at::IntArrayRef strides, torch::Dtype dtype);

/// The tensor on this device: the tensor itself, or a copy with the same strides. Undefined stays undefined.
torch::Tensor on_device(const torch::Tensor& tensor, const torch::Device& device);

/// The memory of a dense tensor on the CPU. Empty if the tensor is undefined.
template <class T>
std::span<T> memory_of(const torch::Tensor& tensor) {
    if (!tensor.defined()) return {};
    return {static_cast<T*>(tensor.data_ptr()), tensor.nbytes() / sizeof(T)};
}

}  // namespace flashoptim::libtorch
