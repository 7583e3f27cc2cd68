// Archives of version 1, which are no longer written: an archive inside for each group, and in it one for
// each parameter.
//
//     param_groups/size               int
//     param_groups/<g>/options        the options, by name
//     param_groups/<g>/params/size    int
//     param_groups/<g>/params/<i>/    dtype, sizes, strides, has_state, state
#include <utility>

#include "archive_format.h"
#include "state_buffers.h"

namespace flashoptim::libtorch {

namespace {

using torch::serialize::InputArchive;

ArchivedParameter read_parameter(InputArchive& archive, Rule rule) {
    ArchivedParameter parameter;
    parameter.dtype = read_entry(archive, "dtype").toStringRef();
    parameter.sizes = read_entry(archive, "sizes").toIntVector();
    parameter.strides = read_entry(archive, "strides").toIntVector();
    parameter.has_state = read_entry(archive, "has_state").toBool();
    if (!parameter.has_state) return parameter;
    InputArchive of_state;
    archive.read("state", of_state);
    const auto state = std::make_unique<FlashParamState>(rule);
    state->serialize(of_state);
    parameter.step = state->step();
    parameter.bad_elements = state->bad_elements();
    parameter.has_momentum = state->has_momentum();
    for (auto& [name, tensor] : state->tensors()) parameter.tensors.emplace(name, tensor);
    return parameter;
}

}  // namespace

std::vector<ArchivedGroup> read_nested_archive(InputArchive& archive, Rule rule,
                                               const torch::optim::OptimizerOptions& defaults) {
    const auto count = read_entry(archive, "param_groups/size").toInt();
    std::vector<ArchivedGroup> groups;
    for (std::int64_t g = 0; g < count; ++g) {
        InputArchive of_group, of_options;
        archive.read("param_groups/" + std::to_string(g), of_group);
        of_group.read("options", of_options);
        ArchivedGroup group;
        group.options = defaults.clone();
        group.options->serialize(of_options);
        const auto parameters = read_entry(of_group, "params/size").toInt();
        for (std::int64_t i = 0; i < parameters; ++i) {
            InputArchive of_parameter;
            of_group.read("params/" + std::to_string(i), of_parameter);
            group.parameters.push_back(read_parameter(of_parameter, rule));
        }
        groups.push_back(std::move(group));
    }
    return groups;
}

}  // namespace flashoptim::libtorch
