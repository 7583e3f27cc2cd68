// The table of an optimizer's parameters: what is taken in, what is refused, and the state of each.
#include "optimizer_impl.h"

#include <algorithm>
#include <utility>

#include "state_buffers.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

/// A plan with the first moment of another one.
StoragePlan with_first_moment_of(StoragePlan plan, const StoragePlan& other) {
    plan.first = other.first;
    plan.first_scales = other.first_scales;
    return plan;
}

}  // namespace

OptimizerImpl::OptimizerImpl(FlashOptimizer& optimizer, Rule rule_of_it)
    : owner(&optimizer), rule(rule_of_it) {}

OptimizerImpl::~OptimizerImpl() {
    if (const auto control = release.lock()) {
        const std::lock_guard lock(control->mutex);
        control->optimizer = nullptr;
    }
}

void OptimizerImpl::add_group(const torch::optim::OptimizerParamGroup& group) {
    if (!release.expired()) {
        throw InvalidArgument(
            "a parameter group cannot be added during gradient release; add it before GradientRelease is "
            "made");
    }
    auto options = owner->defaults().clone();
    if (group.has_options()) {
        options = group.options().clone();
        auto* ours = dynamic_cast<FlashOptions*>(options.get());
        if (ours == nullptr) {
            throw InvalidArgument("options of group " + std::to_string(owner->param_groups().size()) +
                                  " are LibTorch's; give the group options of flashoptim::libtorch");
        }
        ours->inherit(owner->defaults());
    }
    dynamic_cast<FlashOptions&>(*options).remember_first_learning_rate();
    torch::optim::OptimizerParamGroup added(group.params(), std::move(options));
    auto& groups = owner->param_groups();
    groups.push_back(std::move(added));
    try {
        refresh();
    } catch (...) {
        groups.pop_back();
        forget_if([&](const Parameter& parameter) { return parameter.group == groups.size(); });
        throw;
    }
}

const FlashOptions& OptimizerImpl::options_of(const Parameter& parameter) const {
    return dynamic_cast<const FlashOptions&>(std::as_const(owner->param_groups()[parameter.group]).options());
}

void OptimizerImpl::refresh() {
    ++generation_;
    auto& groups = owner->param_groups();
    bool has_new_memory = false;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        auto* options = groups[g].has_options() ? dynamic_cast<FlashOptions*>(&groups[g].options()) : nullptr;
        if (options == nullptr) {
            throw InvalidArgument("group " + std::to_string(g) +
                                  " has no options of flashoptim::libtorch; add groups with add_param_group");
        }
        try {
            check_hyperparameters(rule, options->hyperparameters());
        } catch (const InvalidArgument& error) {
            throw InvalidArgument("group " + std::to_string(g) + ": " + error.what());
        }
        const auto& tensors = groups[g].params();
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            auto found = parameters_.find(tensors[i].unsafeGetTensorImpl());
            if (found == parameters_.end()) {
                adopt(tensors[i], g, i);
                has_new_memory = true;
                continue;
            }
            auto& parameter = found->second;
            if (parameter.generation == generation_) {
                throw InvalidArgument("group " + std::to_string(g) + ", parameter " + std::to_string(i) +
                                      " is the same tensor as " + parameter.name + "; list each tensor once");
            }
            parameter.generation = generation_;
            parameter.group = g;
            update(parameter);
            has_new_memory = has_new_memory || parameter.memory != parameter.tensor.const_data_ptr();
        }
    }
    if (has_new_memory) refuse_shared_memory();
    forget_if([this](const Parameter& parameter) { return parameter.generation != generation_; });
}

template <class Condition>
void OptimizerImpl::forget_if(const Condition& condition) {
    // What a device has counted of them must not be taken for a new tensor's.
    if (std::ranges::any_of(parameters_, [&](const auto& entry) { return condition(entry.second); }))
        collect_counts();
    std::erase_if(parameters_, [&](const auto& entry) {
        const bool forget = condition(entry.second);
        if (forget) set_state(entry.second, nullptr);
        return forget;
    });
}

void OptimizerImpl::adopt(const torch::Tensor& tensor, std::size_t group, std::size_t index) {
    Parameter parameter;
    parameter.name = "group " + std::to_string(group) + ", parameter " + std::to_string(index);
    const auto refuse = [&](const std::string& why) { throw InvalidArgument(parameter.name + ' ' + why); };
    if (!tensor.defined()) refuse("is undefined; give tensors that hold memory");
    parameter.name += " (" + describe(tensor) + ')';
    if (tensor.layout() != torch::kStrided) refuse("is not a strided tensor; give a dense one");
    if (const auto obstacle = obstacle_of(tensor.device())) {
        refuse("is on " + tensor.device().str() + "; " + *obstacle);
    }
    if (!is_steppable(tensor.scalar_type())) {
        refuse("has a dtype that cannot be stepped; cast it to float32, bfloat16 or float16");
    }
    if (!tensor.is_leaf()) refuse("is not a leaf tensor; optimize the tensor that it was computed from");
    if (tensor.is_neg()) refuse("is a lazily negated view; give the tensor that resolve_neg() returns");
    parameter.tensor = tensor;
    parameter.group = group;
    parameter.generation = generation_;
    parameter.device = tensor.device();
    parameter.layout = layout_of(view_of(tensor), parameter.name);
    parameter.plan = plan_of(rule, options_of(parameter), tensor, parameter.layout, parameter.name);
    parameters_.emplace(tensor.unsafeGetTensorImpl(), std::move(parameter));
}

void OptimizerImpl::refuse_shared_memory() {
    std::vector<const Parameter*> by_address;
    for (const auto& [key, parameter] : parameters_) {
        if (parameter.generation == generation_ && parameter.tensor.numel() > 0)
            by_address.push_back(&parameter);
    }
    const auto begin_of = [](const Parameter* p) {
        return static_cast<const std::byte*>(p->tensor.const_data_ptr());
    };
    std::sort(by_address.begin(), by_address.end(),
              [&](const auto* a, const auto* b) { return std::less<>()(begin_of(a), begin_of(b)); });
    for (std::size_t n = 1; n < by_address.size(); ++n) {
        const auto* before = by_address[n - 1];
        if (std::less<>()(begin_of(by_address[n]), begin_of(before) + before->tensor.nbytes())) {
            throw InvalidArgument(by_address[n]->name + " shares memory with " + before->name +
                                  "; optimize one of them, or the tensor that both are parts of");
        }
    }
    for (auto& [key, parameter] : parameters_) parameter.memory = parameter.tensor.const_data_ptr();
}

void OptimizerImpl::update(Parameter& parameter) {
    const auto& tensor = parameter.tensor;
    const bool same = tensor.device() == parameter.device &&
                      dtype_of(tensor.scalar_type()) == parameter.plan.weight_dtype &&
                      tensor.numel() == parameter.layout.numel &&
                      tensor.strides() == at::IntArrayRef(parameter.layout.strides);
    if (!same) {
        throw InvalidArgument(parameter.name + " has become " + describe(tensor) + " with strides " +
                              describe(tensor.strides()) + " on " + tensor.device().str() +
                              "; make a new optimizer after a model was changed");
    }
    const auto plan = plan_of(rule, options_of(parameter), tensor, parameter.layout, parameter.name);
    if (plan != parameter.plan) change_plan(parameter, plan);
}

void OptimizerImpl::change_plan(Parameter& parameter, const StoragePlan& plan) {
    if (auto* state = state_of(parameter)) {
        // SGD's momentum may be switched on and off between steps; nothing else may change under a state.
        if (with_first_moment_of(plan, parameter.plan) != parameter.plan) {
            throw InvalidArgument(
                parameter.name +
                ": format, master_weight_bits, quantize or min_quantized_numel changed after its first step; "
                "set them back, or make a new optimizer and set its masters");
        }
        collect_steps();  // they know of the former momentum
        auto fresh = new_state(rule);
        allocate_state(parameter, plan, parameter.layout, parameter.tensor.strides(), parameter.device,
                       *fresh);
        state->first_moment(fresh->first_moment());
        state->first_moment_scales(fresh->first_moment_scales());
        state->has_momentum(false);
    }
    parameter.plan = plan;
}

Parameter& OptimizerImpl::find(const torch::Tensor& tensor) {
    refresh();
    const auto found = tensor.defined() ? parameters_.find(tensor.unsafeGetTensorImpl()) : parameters_.end();
    if (found == parameters_.end()) {
        throw InvalidArgument(
            "the tensor " + (tensor.defined() ? describe(tensor) : std::string("(undefined)")) +
            " is not a parameter of this optimizer; pass the very tensor of a parameter group");
    }
    return found->second;
}

FlashParamState* OptimizerImpl::state_of(const Parameter& parameter) const {
    const auto found = owner->state().find(parameter.tensor.unsafeGetTensorImpl());
    return found == owner->state().end() ? nullptr : dynamic_cast<FlashParamState*>(found->second.get());
}

FlashParamState& OptimizerImpl::ensure_state(const Parameter& parameter) {
    if (auto* state = state_of(parameter)) return *state;
    auto state = new_state(rule);
    allocate_state(parameter, parameter.plan, parameter.layout, parameter.tensor.strides(), parameter.device,
                   *state);
    set_state(parameter, std::move(state));
    return *state_of(parameter);
}

void OptimizerImpl::set_state(const Parameter& parameter, std::unique_ptr<FlashParamState> state) {
    auto* key = parameter.tensor.unsafeGetTensorImpl();
    if (state) {
        owner->state()[key] = std::move(state);
    } else {
        owner->state().erase(key);
    }
}

void OptimizerImpl::clear_correction(const Parameter& parameter) {
    auto* state = state_of(parameter);
    if (state != nullptr && state->error_bits().defined()) state->error_bits().zero_();
}

std::vector<Parameter*> OptimizerImpl::all() {
    refresh();
    std::vector<Parameter*> parameters;
    for (const auto& group : owner->param_groups()) {
        for (const auto& tensor : group.params()) {
            parameters.push_back(&parameters_.at(tensor.unsafeGetTensorImpl()));
        }
    }
    return parameters;
}

}  // namespace flashoptim::libtorch
