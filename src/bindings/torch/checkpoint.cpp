// Connects LibTorch optimizers to the writer and the reader of checkpoint folders. Knows no file format.
#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "checkpoint/optimizer_checkpoint.h"
#include "flashoptim/libtorch_checkpoint.h"
#include "optimizer_impl.h"
#include "state_buffers.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

std::vector<Hyperparameters> groups_of(FlashOptimizer& optimizer) {
    std::vector<Hyperparameters> groups;
    for (const auto& group : optimizer.param_groups())
        groups.push_back(dynamic_cast<const FlashOptions&>(group.options()).hyperparameters());
    return groups;
}

std::vector<checkpoint::ParameterPlace> places_of(OptimizerImpl& impl, const ParameterNames& names) {
    std::unordered_map<const void*, const std::string*> name_of_tensor;
    for (const auto& item : names) name_of_tensor.emplace(item.value().unsafeGetTensorImpl(), &item.key());
    std::vector<checkpoint::ParameterPlace> places;
    for (const auto* parameter : impl.all()) {
        auto name = "parameter " + std::to_string(places.size());
        if (!names.is_empty()) {
            const auto found = name_of_tensor.find(parameter->key());
            if (found == name_of_tensor.end()) {
                throw InvalidArgument(
                    parameter->name +
                    " has no name; give the named_parameters() of the module that it is in");
            }
            name = *found->second;
        }
        const auto& form = parameter->form;
        places.push_back({.name = std::move(name),
                          .group = parameter->group,
                          .dtype = form.plan.weight_dtype,
                          .shape = parameter->sizes,
                          .strides = form.layout.strides,
                          .layout = form.layout,
                          .storage = impl.options_of(*parameter).storage()});
    }
    checkpoint::check_names(places);
    return places;
}

/// The bytes of a tensor on the CPU. A copy is kept alive in `kept`.
std::span<const std::byte> bytes_here(const torch::Tensor& tensor, std::vector<torch::Tensor>& kept) {
    if (!tensor.defined()) return {};
    kept.push_back(on_device(tensor.detach(), torch::kCPU));
    return memory_of<const std::byte>(kept.back());
}

/// A copy of the group's options with other hyperparameters.
std::unique_ptr<torch::optim::OptimizerOptions> with(const Hyperparameters& hyperparameters,
                                                     const torch::optim::OptimizerParamGroup& group) {
    auto options = group.options().clone();
    auto& ours = dynamic_cast<FlashOptions&>(*options);
    ours.set_hyperparameters(hyperparameters);
    ours.remember_first_learning_rate();
    return options;
}

/// What loading will install for one parameter.
struct Loaded {
    Parameter* parameter;
    StateForm form;
    std::unique_ptr<FlashParamState> state;  // null: the state before the first step
    torch::Tensor weight;                    // undefined: the parameter keeps its weight
};

Loaded loaded_from(checkpoint::LoadedParameter&& from, Rule rule, Parameter& parameter) {
    Loaded loaded{&parameter, parameter.form, nullptr, {}};
    loaded.form.plan = from.plan;
    if (!from.state.weight.empty()) {
        const auto weight = torch::empty_strided(parameter.sizes, parameter.form.layout.strides,
                                                 torch::dtype(torch_dtype_of(from.plan.weight_dtype)));
        std::memcpy(weight.mutable_data_ptr(), from.state.weight.data(), from.state.weight.size());
        loaded.weight = on_device(weight, parameter.form.device);
    }
    if (!from.has_state) return loaded;
    auto state = std::make_unique<FlashParamState>(rule);
    allocate_state(parameter.sizes, loaded.form, torch::kCPU, *state);
    for (int place = 0; place < kMaxBuffers; ++place) {
        auto bytes = std::exchange(from.state.at(place), {});  // freed at the end of this iteration
        if (!bytes.empty()) std::memcpy(state->at(place).mutable_data_ptr(), bytes.data(), bytes.size());
    }
    move_state(*state, parameter.form.device);
    constexpr std::uint64_t kMost = INT64_MAX;
    state->step(from.counts.steps)
        .bad_elements(static_cast<std::int64_t>(std::min(from.counts.bad_elements, kMost)))
        .has_momentum(from.counts.has_momentum && state->at(codes_place(0)).defined());
    loaded.state = std::move(state);
    return loaded;
}

}  // namespace

std::uint64_t save_optimizer(FlashOptimizer& optimizer, const ParameterNames& names,
                             const std::filesystem::path& folder, const SaveOptions& options) {
    const torch::NoGradGuard no_gradients;
    auto& impl = OptimizerImpl::of(optimizer);
    auto places = places_of(impl, names);
    impl.collect_counts();
    checkpoint::OptimizerToSave saved{.rule = impl.rule, .groups = groups_of(optimizer), .parameters = {}};
    std::vector<torch::Tensor> kept;
    auto place = places.begin();
    for (auto* parameter : impl.all()) {
        auto& p = saved.parameters.emplace_back();
        p.place = std::move(*place++);
        // A state of another form is converted first, as at any other use.
        if (impl.state_of(*parameter) != nullptr) impl.adopt(*parameter, impl.fresh_state(*parameter));
        const auto* state = impl.state_of(*parameter);
        p.plan = parameter->form.plan;
        p.has_state = state != nullptr;
        if (state != nullptr) {
            buffers(*state, p.plan, parameter->name);  // for its check
            p.counts = {state->step(), state->has_momentum(),
                        static_cast<std::uint64_t>(state->bad_elements())};
            for (int n = 0; n < kMaxBuffers; ++n)
                p.buffers[static_cast<std::size_t>(n)] = bytes_here(state->at(n), kept);
        }
        if (options.weights) p.weight = bytes_here(parameter->tensor, kept);
    }
    return checkpoint::write_optimizer(folder, saved, options);
}

LoadReport load_optimizer(FlashOptimizer& optimizer, const ParameterNames& names,
                          const checkpoint::Checkpoint& from, const LoadOptions& options) {
    const torch::NoGradGuard no_gradients;
    auto& impl = OptimizerImpl::of(optimizer);
    const auto parameters = impl.all();
    const checkpoint::OptimizerToLoad to{.rule = impl.rule,
                                         .groups = groups_of(optimizer),
                                         .parameters = places_of(impl, names),
                                         .stored_weight = [&](std::size_t n) {
                                             std::vector<torch::Tensor> kept;
                                             const auto bytes = bytes_here(parameters[n]->tensor, kept);
                                             return std::vector<std::byte>(bytes.begin(), bytes.end());
                                         }};
    auto read = checkpoint::read_optimizer(from, to, options);
    impl.collect_counts();  // or the old counts would be added to the loaded ones
    std::vector<Loaded> loaded;
    for (auto& p : read.parameters)
        loaded.push_back(loaded_from(std::move(p), impl.rule, *parameters[p.parameter]));
    std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> of_groups;
    for (std::size_t g = 0; g < read.groups.size() && read.report.hyperparameters; ++g)
        of_groups.push_back(with(read.groups[g], optimizer.param_groups()[g]));
    StateSlots slots(optimizer);
    for (const auto& one : loaded) {
        if (one.state) slots.reserve(*one.parameter);
    }
    // Nothing below can fail, unless the device does.
    for (std::size_t g = 0; g < of_groups.size(); ++g)
        optimizer.param_groups()[g].set_options(std::move(of_groups[g]));
    for (auto& one : loaded) {
        if (one.weight.defined()) OptimizerImpl::write_weight(*one.parameter, one.weight);
        if (one.state) {
            impl.install(*one.parameter, std::move(one.state));
        } else {
            optimizer.state().erase(one.parameter->key());
            one.parameter->former.reset();
        }
        one.parameter->form = std::move(one.form);
    }
    return std::move(read.report);
}

LoadReport load_optimizer(FlashOptimizer& optimizer, const ParameterNames& names,
                          const std::filesystem::path& folder, const LoadOptions& options) {
    return load_optimizer(optimizer, names, checkpoint::Checkpoint::open(folder), options);
}

}  // namespace flashoptim::libtorch
