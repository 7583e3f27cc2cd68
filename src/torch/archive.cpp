// Saving an optimizer into a torch archive and loading it. Groups and parameters are known by their position.
//
//     flashoptim_archive    int, kVersion          rule    "AdamW", ...
//     param_groups/size     int                    param_groups/<g>/options            the options, by name
//     param_groups/<g>/params/size                 param_groups/<g>/params/<i>/        dtype, sizes, strides, has_state, state
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "optimizer_impl.h"
#include "state_buffers.h"
#include "state_tensors.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

constexpr std::int64_t kVersion = 1;
constexpr const char* kVersionKey = "flashoptim_archive";

using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

void save_parameter(OutputArchive& archive, const torch::Tensor& tensor, const FlashParamState* state) {
    archive.write("dtype", libtorch::name_of(tensor.scalar_type()));
    archive.write("sizes", tensor.sizes().vec());
    archive.write("strides", tensor.strides().vec());
    archive.write("has_state", state != nullptr);
    if (state == nullptr) return;
    OutputArchive of_state(archive.compilation_unit());
    state->serialize(of_state);
    archive.write("state", of_state);
}

c10::IValue read(InputArchive& archive, const std::string& key) {
    c10::IValue value;
    if (!archive.try_read(key, value))
        throw FormatError("optimizer archive: " + key + " is missing; the archive is damaged");
    return value;
}

void expect_count(std::int64_t found, std::size_t expected, const std::string& what) {
    if (found != static_cast<std::int64_t>(expected)) {
        throw FormatError("optimizer archive: " + std::to_string(found) + ' ' + what +
                          " where the optimizer has " + std::to_string(expected) +
                          "; make the optimizer with the groups that were saved");
    }
}

/// What an archive holds of one group, ready to be put in place.
struct LoadedGroup {
    std::unique_ptr<torch::optim::OptimizerOptions> options;
    std::vector<std::pair<const Parameter*, std::unique_ptr<FlashParamState>>> states;
};

std::unique_ptr<FlashParamState> load_parameter(InputArchive& archive, Rule rule, const FlashOptions& options,
                                                const Parameter& parameter) {
    const auto dtype = read(archive, "dtype").toStringRef();
    const auto sizes = read(archive, "sizes").toIntVector();
    if (dtype != libtorch::name_of(parameter.tensor.scalar_type()) ||
        parameter.tensor.sizes() != at::IntArrayRef(sizes)) {
        throw FormatError("optimizer archive: " + parameter.name + " was saved as " + dtype + ' ' +
                          describe(at::IntArrayRef(sizes)) + "; load the archive of this model");
    }
    if (!read(archive, "has_state").toBool()) return nullptr;
    InputArchive of_state;
    archive.read("state", of_state);
    const auto saved = new_state(rule);
    saved->serialize(of_state);
    if (saved->step() < 0 || saved->bad_elements() < 0) {
        throw FormatError("optimizer archive: " + parameter.name +
                          " has a negative count; the archive is damaged");
    }
    std::map<std::string, torch::Tensor> tensors;
    for (auto& [name, tensor] : saved->tensors()) tensors.emplace(name, tensor);
    const auto strides = read(archive, "strides").toIntVector();
    return restore_state(rule, options, parameter, tensors, strides, *saved);
}

LoadedGroup load_group(InputArchive& archive, OptimizerImpl& impl, std::size_t g) {
    LoadedGroup loaded;
    loaded.options = impl.owner->defaults().clone();
    auto& options = dynamic_cast<FlashOptions&>(*loaded.options);
    InputArchive of_options;
    archive.read("options", of_options);
    options.serialize(of_options);
    check_hyperparameters(impl.rule, options.hyperparameters());

    const auto& tensors = impl.owner->param_groups()[g].params();
    const auto group = "group " + std::to_string(g);
    expect_count(read(archive, "params/size").toInt(), tensors.size(), "parameters in " + group);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        InputArchive of_parameter;
        archive.read("params/" + std::to_string(i), of_parameter);
        const auto& parameter = impl.find(tensors[i]);
        // Throws for options that no state can have, also where there is none.
        plan_of(impl.rule, options, parameter.tensor, parameter.layout, parameter.name);
        loaded.states.emplace_back(&parameter, load_parameter(of_parameter, impl.rule, options, parameter));
    }
    return loaded;
}

std::vector<LoadedGroup> load_groups(InputArchive& archive, OptimizerImpl& impl) {
    const std::string rule(name_of(impl.rule));
    c10::IValue version;
    if (!archive.try_read(kVersionKey, version)) {
        throw FormatError("optimizer archive: it was not written by flashoptim::libtorch::" + rule + " (no " +
                          kVersionKey + " in it); load one that was");
    }
    if (version.toInt() != kVersion) {
        throw FormatError("optimizer archive: its version is " + std::to_string(version.toInt()) +
                          " and this library reads " + std::to_string(kVersion) +
                          "; load it with the library that wrote it");
    }
    const auto saved_rule = read(archive, "rule").toStringRef();
    if (saved_rule != rule) {
        throw FormatError("optimizer archive: it holds a " + saved_rule + " and was to be loaded into a " +
                          rule + "; make the optimizer that was saved");
    }
    const auto count = impl.owner->param_groups().size();
    expect_count(read(archive, "param_groups/size").toInt(), count, "parameter groups");
    std::vector<LoadedGroup> groups;
    for (std::size_t g = 0; g < count; ++g) {
        InputArchive of_group;
        archive.read("param_groups/" + std::to_string(g), of_group);
        groups.push_back(load_group(of_group, impl, g));
    }
    return groups;
}

}  // namespace

void FlashOptimizer::save(OutputArchive& archive) const {
    impl_->collect_counts();
    archive.write(kVersionKey, kVersion);
    archive.write("rule", std::string(name_of(impl_->rule)));
    const auto& groups = param_groups();
    archive.write("param_groups/size", static_cast<std::int64_t>(groups.size()));
    for (std::size_t g = 0; g < groups.size(); ++g) {
        OutputArchive of_group(archive.compilation_unit());
        OutputArchive of_options(archive.compilation_unit());
        groups[g].options().serialize(of_options);
        of_group.write("options", of_options);
        const auto& tensors = groups[g].params();
        of_group.write("params/size", static_cast<std::int64_t>(tensors.size()));
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            OutputArchive of_parameter(archive.compilation_unit());
            save_parameter(of_parameter, tensors[i], impl_->state_of(impl_->find(tensors[i])));
            of_group.write("params/" + std::to_string(i), of_parameter);
        }
        archive.write("param_groups/" + std::to_string(g), of_group);
    }
}

void FlashOptimizer::load(InputArchive& archive) {
    const torch::NoGradGuard no_gradients;
    impl_->refresh();
    impl_->collect_counts();  // or they would be added to those that are loaded
    std::vector<LoadedGroup> loaded;
    try {
        loaded = load_groups(archive, *impl_);
    } catch (const c10::Error& error) {
        const std::string text = error.what_without_backtrace();
        throw FormatError("optimizer archive: it is damaged (" + text.substr(0, text.find('\n')) +
                          "); load another copy");
    } catch (const InvalidArgument& error) {
        throw FormatError(std::string("optimizer archive: ") + error.what() +
                          "; the archive is damaged, load another copy");
    }
    for (std::size_t g = 0; g < loaded.size(); ++g) {
        // States first go: a plan may change only under a parameter that has none.
        for (auto& [parameter, state] : loaded[g].states) impl_->set_state(*parameter, nullptr);
        param_groups()[g].set_options(std::move(loaded[g].options));
    }
    impl_->refresh();
    for (auto& group : loaded) {
        for (auto& [parameter, state] : group.states) impl_->set_state(*parameter, std::move(state));
    }
}

}  // namespace flashoptim::libtorch
