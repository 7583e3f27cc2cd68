// The contents of a torch archive of an optimizer, as they are stored. Only their form is checked here.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flashoptim/libtorch.h"
#include "flashoptim/libtorch_headers.h"

namespace flashoptim::libtorch {

/// A saved parameter, with its state if it had one.
struct ArchivedParameter {
    std::string dtype;  // the dtype that its state was made for
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

/// Groups and parameters are identified by their position.
void write_archive(torch::serialize::OutputArchive& archive, Rule rule,
                   const std::vector<ArchivedGroup>& groups);
/// Reads an archive of any version. `defaults` are options of the optimizer's class.
/// @throws FormatError or an error of torch if the archive is damaged or of another rule.
std::vector<ArchivedGroup> read_archive(torch::serialize::InputArchive& archive, Rule rule,
                                        const torch::optim::OptimizerOptions& defaults);
/// Reads an archive of version 1.
std::vector<ArchivedGroup> read_nested_archive(torch::serialize::InputArchive& archive, Rule rule,
                                               const torch::optim::OptimizerOptions& defaults);

/// Reads an entry of an archive. @throws FormatError if it is missing.
c10::IValue read_entry(torch::serialize::InputArchive& archive, const std::string& key);

}  // namespace flashoptim::libtorch
