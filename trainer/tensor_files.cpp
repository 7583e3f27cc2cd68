// The one table of dtypes between LibTorch and files. Knows no model and no optimizer.
#include "trainer/tensor_files.h"

#include <array>
#include <span>

#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

using checkpoint::StorageType;

constexpr std::array<std::pair<torch::ScalarType, StorageType>, 13> kTypes = {{
    {torch::kBool, StorageType::kBool},
    {torch::kUInt8, StorageType::kUInt8},
    {torch::kInt8, StorageType::kInt8},
    {torch::kInt16, StorageType::kInt16},
    {torch::kUInt16, StorageType::kUInt16},
    {torch::kFloat16, StorageType::kFloat16},
    {torch::kBFloat16, StorageType::kBFloat16},
    {torch::kInt32, StorageType::kInt32},
    {torch::kUInt32, StorageType::kUInt32},
    {torch::kFloat32, StorageType::kFloat32},
    {torch::kFloat64, StorageType::kFloat64},
    {torch::kInt64, StorageType::kInt64},
    {torch::kUInt64, StorageType::kUInt64},
}};

StorageType storage_type(torch::ScalarType dtype, const std::string& name) {
    for (const auto& [ours, stored] : kTypes) {
        if (ours == dtype) {
            return stored;
        }
    }
    throw InvalidArgument("tensor " + name + " has dtype " + c10::toString(dtype) +
                          ", which safetensors files do not have; convert it first");
}

torch::ScalarType scalar_type(StorageType type) {
    for (const auto& [ours, stored] : kTypes) {
        if (stored == type) {
            return ours;
        }
    }
    throw FormatError("a safetensors dtype is unknown to LibTorch; convert the file");
}

std::span<std::byte> bytes_of(const torch::Tensor& tensor) {
    return {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

}  // namespace

void TensorList::add(const std::string& name, const torch::Tensor& tensor) {
    kept_.push_back(tensor.detach().to(torch::kCPU).contiguous());
    const torch::Tensor& kept = kept_.back();
    data_.push_back({name, storage_type(kept.scalar_type(), name), kept.sizes().vec(), bytes_of(kept)});
}

void read_into(const checkpoint::SafetensorsFile& file, const std::string& name,
               const torch::Tensor& target) {
    const std::vector<std::int64_t> shape = target.sizes().vec();
    const checkpoint::TensorInfo& info = file.tensor(name, storage_type(target.scalar_type(), name), shape);
    const torch::NoGradGuard no_grad;
    torch::Tensor destination = target.detach();
    if (destination.is_cpu() && destination.is_contiguous()) {
        file.read(info, bytes_of(destination));
    } else {
        destination.copy_(read_tensor(file, info));
    }
}

torch::Tensor read_tensor(const checkpoint::SafetensorsFile& file, const checkpoint::TensorInfo& info) {
    torch::Tensor tensor = torch::empty(info.shape, scalar_type(info.dtype));
    file.read(info, bytes_of(tensor));
    return tensor;
}

}  // namespace flashoptim::trainer
