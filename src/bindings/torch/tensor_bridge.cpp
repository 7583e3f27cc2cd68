// Converts between torch tensors and the core's types.
#include "tensor_bridge.h"

#include <ostream>
#include <sstream>

#include "flashoptim/layout.h"

namespace flashoptim::libtorch {

std::optional<DType> dtype_of(torch::Dtype dtype) {
    switch (dtype) {
        case torch::kFloat32:
            return DType::kFloat32;
        case torch::kBFloat16:
            return DType::kBFloat16;
        case torch::kFloat16:
            return DType::kFloat16;
        case torch::kInt8:
            return DType::kInt8;
        case torch::kUInt8:
            return DType::kUInt8;
        case torch::kInt16:
            return DType::kInt16;
        default:
            return std::nullopt;
    }
}

torch::Dtype torch_dtype_of(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return torch::kFloat32;
        case DType::kBFloat16:
            return torch::kBFloat16;
        case DType::kFloat16:
            return torch::kFloat16;
        case DType::kInt8:
            return torch::kInt8;
        case DType::kUInt8:
            return torch::kUInt8;
        case DType::kInt16:
            return torch::kInt16;
    }
    return torch::kFloat32;
}

bool is_steppable(torch::Dtype dtype) {
    const auto ours = dtype_of(dtype);
    return ours && is_floating(*ours);
}

std::string name_of(torch::Dtype dtype) { return std::string(c10::getDtypeNames(dtype).first); }

std::string describe(at::IntArrayRef sizes) {
    std::ostringstream text;
    text << sizes;
    return text.str();
}

std::string describe(const torch::Tensor& tensor) {
    return name_of(tensor.scalar_type()) + ' ' + describe(tensor.sizes());
}

TensorView view_of(const torch::Tensor& tensor) {
    TensorView view;
    view.data = tensor.data_ptr();
    view.dtype = dtype_of(tensor.scalar_type()).value();
    view.shape = tensor.sizes().vec();
    view.strides = tensor.strides().vec();
    return view;
}

bool is_aligned(const torch::Tensor& tensor) {
    // A tensor without elements may have any address.
    return tensor.numel() == 0 ||
           reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % tensor.element_size() == 0;
}

torch::Tensor in_order(const torch::Tensor& values, at::IntArrayRef strides, torch::Dtype dtype) {
    if (values.scalar_type() == dtype && !values.is_neg() && is_aligned(values) &&
        same_memory_order(values.sizes(), values.strides(), strides)) {
        return values;
    }
    auto copy = torch::empty_strided(values.sizes(), strides, torch::dtype(dtype).device(values.device()));
    copy.copy_(values);
    return copy;
}

torch::Tensor on_device(const torch::Tensor& tensor, const torch::Device& device) {
    if (!tensor.defined() || tensor.device() == device) return tensor;
    auto copy = torch::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(device));
    copy.copy_(tensor);
    return copy;
}

}  // namespace flashoptim::libtorch
