// LibTorch tensors as the tensors of checkpoint files, and back. Knows no model and no optimizer.
#pragma once

#include <torch/torch.h>

#include <string>
#include <utility>
#include <vector>

#include "flashoptim/checkpoint.h"

namespace flashoptim::trainer {

using NamedTensor = std::pair<std::string, torch::Tensor>;

/// Describes tensors for writing, in row order. Those that do not lie in row order or on the CPU are
/// copied, the others are borrowed.
class TensorList {
public:
    /// Throws InvalidArgument for a dtype that files do not have, naming the tensor.
    void add(const std::string& name, const torch::Tensor& tensor);

    /// Valid while this object lives.
    const std::vector<checkpoint::TensorData>& data() const { return data_; }

private:
    std::vector<torch::Tensor> kept_;
    std::vector<checkpoint::TensorData> data_;
};

/// Reads the file's tensor of that name into `target`, which must have its dtype
/// and shape (else FormatError).
void read_into(const checkpoint::SafetensorsFile& file, const std::string& name, const torch::Tensor& target);

/// Reads a tensor into new memory, in row order.
torch::Tensor read_tensor(const checkpoint::SafetensorsFile& file, const checkpoint::TensorInfo& info);

}  // namespace flashoptim::trainer
