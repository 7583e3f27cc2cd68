// Saves an optimizer in a torch archive and loads it. The whole archive is checked first, then all of it is
// installed.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "archive_format.h"
#include "optimizer_impl.h"
#include "state_buffers.h"
#include "state_tensors.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

void expect_count(std::size_t found, std::size_t expected, const std::string& what) {
    if (found != expected) {
        throw FormatError("optimizer archive: " + std::to_string(found) + ' ' + what +
                          " where the optimizer has " + std::to_string(expected) +
                          "; make the optimizer with the groups that were saved");
    }
}

/// What loading will install for one parameter.
struct Loaded {
    Parameter* parameter;
    StateForm form;                     // the parameter's form under the loaded options
    std::unique_ptr<StateForm> former;  // the form of the state, if different
    std::unique_ptr<FlashParamState> state;
};

torch::Dtype dtype_named(const std::string& name, const Parameter& parameter) {
    for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kFloat16}) {
        if (libtorch::name_of(dtype) == name) return dtype;
    }
    throw FormatError("optimizer archive: " + parameter.name + " was saved as " + name +
                      "; the archive is damaged");
}

Loaded judged(const ArchivedParameter& saved, Rule rule, const FlashOptions& options, Parameter& parameter) {
    if (parameter.tensor.sizes() != at::IntArrayRef(saved.sizes)) {
        throw FormatError("optimizer archive: " + parameter.name + " was saved as " + saved.dtype + ' ' +
                          describe(at::IntArrayRef(saved.sizes)) + "; load the archive of this model");
    }
    const auto saved_dtype = dtype_named(saved.dtype, parameter);
    Loaded loaded{&parameter, {}, nullptr, nullptr};
    loaded.form.device = parameter.form.device;
    loaded.form.layout = parameter.form.layout;
    // Throws for options that no state can have, even if this parameter has no state.
    loaded.form.plan = plan_of(rule, options, parameter.tensor, parameter.form.layout, parameter.name);
    if (!saved.has_state) return loaded;
    if (saved.step < 0 || saved.bad_elements < 0) {
        throw FormatError("optimizer archive: " + parameter.name +
                          " has a negative count; the archive is damaged");
    }
    auto form = form_of_saved(parameter, saved.strides, saved_dtype, rule, options);
    loaded.state = restore_state(rule, parameter, form, saved.tensors);
    loaded.state->step(saved.step).bad_elements(saved.bad_elements).has_momentum(saved.has_momentum);
    // The weights that belong to this state may be loaded later, so a conversion waits for the first use.
    if (!fits(form, loaded.form, parameter.sizes))
        loaded.former = std::make_unique<StateForm>(std::move(form));
    return loaded;
}

std::vector<Loaded> judged(const std::vector<ArchivedGroup>& groups, OptimizerImpl& impl) {
    const auto& here = impl.owner->param_groups();
    expect_count(groups.size(), here.size(), "parameter groups");
    std::vector<Loaded> loaded;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        const auto& options = dynamic_cast<const FlashOptions&>(*groups[g].options);
        check_hyperparameters(impl.rule, options.hyperparameters());
        const auto& tensors = here[g].params();
        expect_count(groups[g].parameters.size(), tensors.size(), "parameters in group " + std::to_string(g));
        for (std::size_t i = 0; i < tensors.size(); ++i)
            loaded.push_back(judged(groups[g].parameters[i], impl.rule, options, impl.find(tensors[i])));
    }
    return loaded;
}

}  // namespace

void FlashOptimizer::save(torch::serialize::OutputArchive& archive) const {
    impl_->collect_counts();
    std::vector<ArchivedGroup> groups;
    for (const auto& group : param_groups()) {
        ArchivedGroup saved;
        saved.options = group.options().clone();
        for (const auto& tensor : group.params()) {
            const auto& parameter = impl_->find(tensor);
            const auto& form = parameter.state_form();
            const auto* state = impl_->state_of(parameter);
            ArchivedParameter one;
            one.dtype = libtorch::name_of(torch_dtype_of(form.plan.weight_dtype));
            one.sizes = parameter.sizes;
            one.strides = form.layout.strides;
            one.has_state = state != nullptr;
            if (state != nullptr) {
                one.step = state->step();
                one.bad_elements = state->bad_elements();
                one.has_momentum = state->has_momentum();
                // On the CPU: torch could not read an archive of a GPU's tensors on a machine without one.
                for (const auto& [name, values] : state->tensors())
                    one.tensors.emplace(name, on_device(values, torch::kCPU));
            }
            saved.parameters.push_back(std::move(one));
        }
        groups.push_back(std::move(saved));
    }
    write_archive(archive, impl_->rule, groups);
}

void FlashOptimizer::load(torch::serialize::InputArchive& archive) {
    const torch::NoGradGuard no_gradients;
    impl_->refresh();
    impl_->collect_counts();  // or the old counts would be added to the loaded ones
    std::vector<ArchivedGroup> groups;
    std::vector<Loaded> loaded;
    try {
        groups = read_archive(archive, impl_->rule, defaults());
        loaded = judged(groups, *impl_);
    } catch (const c10::Error& error) {
        const std::string text = error.what_without_backtrace();
        throw FormatError("optimizer archive: it is damaged (" + text.substr(0, text.find('\n')) +
                          "); load another copy");
    } catch (const InvalidArgument& error) {
        throw FormatError(std::string("optimizer archive: ") + error.what() +
                          "; the archive is damaged, load another copy");
    }
    StateSlots slots(*this);
    for (const auto& one : loaded) {
        if (one.state) slots.reserve(*one.parameter);
    }
    // Nothing below can fail.
    for (std::size_t g = 0; g < groups.size(); ++g)
        param_groups()[g].set_options(std::move(groups[g].options));
    for (auto& one : loaded) {
        if (one.state) {
            impl_->install(*one.parameter, std::move(one.state));
        } else {
            state().erase(one.parameter->key());
        }
        one.parameter->form = std::move(one.form);
        one.parameter->former = std::move(one.former);
    }
}

}  // namespace flashoptim::libtorch
