// What a torch archive holds of an optimizer, as it stands there: nothing of it is judged here but its form.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flashoptim/libtorch.h"
#include "flashoptim/libtorch_headers.h"

namespace flashoptim::libtorch {

/// A parameter, and its state if it had one, when they were saved.
struct ArchivedParameter {
    std::string dtype;  // that its state is of
    std::vector<std::int64_t> sizes, strides;
    bool has_state = false;
    std::int64_t step = 0, bad_elements = 0;
    bool has_momentum = false;
    std::map<std::string, torch::Tensor> tensors;
};

struct ArchivedGroup {
    std::unique_ptr<torch::optim::OptimizerOptions> options;
    std::vector<ArchivedParameter> parameters;
};

/// Groups and parameters are known by their position.
void write_archive(torch::serialize::OutputArchive& archive, Rule rule,
                   const std::vector<ArchivedGroup>& groups);
/// Reads an archive of any version. `defaults` are options of the optimizer's kind.
/// @throws FormatError or torch's error for one that is not of this rule, or damaged.
std::vector<ArchivedGroup> read_archive(torch::serialize::InputArchive& archive, Rule rule,
                                        const torch::optim::OptimizerOptions& defaults);
/// One of version 1.
std::vector<ArchivedGroup> read_nested_archive(torch::serialize::InputArchive& archive, Rule rule,
                                               const torch::optim::OptimizerOptions& defaults);

/// An entry of an archive. @throws FormatError if it is missing.
c10::IValue read_entry(torch::serialize::InputArchive& archive, const std::string& key);

}  // namespace flashoptim::libtorch
