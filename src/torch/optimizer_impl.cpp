// The table of an optimizer's parameters, and the step: gradients are checked and brought into their parameter's order, then
// the core is called once.
#include "optimizer_impl.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

torch::Tensor zeros(const BufferPlan& plan, at::IntArrayRef sizes, at::IntArrayRef strides) {
    if (plan.count == 0) return {};
    return torch::empty_strided(sizes, strides, torch::dtype(torch_dtype_of(plan.dtype))).zero_();
}

torch::Tensor scale_zeros(const BufferPlan& plan, const StoragePlan& storage, const Layout& layout) {
    if (plan.count == 0) return {};
    const auto options = torch::dtype(torch_dtype_of(plan.dtype));
    if (storage.moments == MomentStorage::kNative)
        return torch::zeros({layout.rows, layout.groups_per_row()}, options);
    return torch::zeros({plan.count}, options);
}

/// The memory of a state tensor, which somebody may have exchanged.
void* buffer(const torch::Tensor& tensor, const BufferPlan& plan, const std::string& parameter) {
    if (plan.count == 0) return nullptr;
    if (!tensor.defined() || tensor.numel() != plan.count ||
        tensor.scalar_type() != torch_dtype_of(plan.dtype)) {
        throw InvalidArgument(
            parameter +
            ": its state is not that of its options any more; use load_state_tensors to replace a state");
    }
    return tensor.data_ptr();
}

StateBuffers buffers(const FlashParamState& state, const StoragePlan& plan, const std::string& parameter) {
    return {buffer(state.error_bits(), plan.correction, parameter),
            buffer(state.first_moment(), plan.first, parameter),
            buffer(state.first_moment_scales(), plan.first_scales, parameter),
            buffer(state.second_moment(), plan.second, parameter),
            buffer(state.second_moment_scales(), plan.second_scales, parameter)};
}

/// A plan with the first moment of another one.
StoragePlan with_first_moment_of(StoragePlan plan, const StoragePlan& other) {
    plan.first = other.first;
    plan.first_scales = other.first_scales;
    return plan;
}

}  // namespace

StoragePlan plan_of(Rule rule, const FlashOptions& options, const torch::Tensor& tensor, const Layout& layout,
                    const std::string& name) {
    return plan_storage(rule, options.hyperparameters(), options.storage(),
                        dtype_of(tensor.scalar_type()).value(), layout, name);
}

std::unique_ptr<FlashParamState> new_state(Rule rule) {
    switch (rule) {
        case Rule::kSGD:
            return std::make_unique<SGDParamState>();
        case Rule::kSGDW:
            return std::make_unique<SGDWParamState>();
        case Rule::kAdam:
            return std::make_unique<AdamParamState>();
        case Rule::kAdamW:
            return std::make_unique<AdamWParamState>();
        case Rule::kLion:
            return std::make_unique<LionParamState>();
    }
    throw InvalidArgument("unknown rule");
}

void allocate_state(const Parameter& parameter, const StoragePlan& plan, const Layout& layout,
                    at::IntArrayRef strides, FlashParamState& state) {
    const auto sizes = parameter.tensor.sizes();
    state.error_bits(zeros(plan.correction, sizes, strides));
    state.first_moment(zeros(plan.first, sizes, strides));
    state.first_moment_scales(scale_zeros(plan.first_scales, plan, layout));
    state.second_moment(zeros(plan.second, sizes, strides));
    state.second_moment_scales(scale_zeros(plan.second_scales, plan, layout));
}

OptimizerImpl::OptimizerImpl(FlashOptimizer& optimizer, Rule rule_of_it)
    : owner(&optimizer), rule(rule_of_it), threads(at::get_num_threads()) {}

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
    torch::optim::OptimizerParamGroup added(group.params(), std::move(options));
    auto& groups = owner->param_groups();
    groups.push_back(std::move(added));
    try {
        refresh();
    } catch (...) {
        groups.pop_back();
        std::erase_if(parameters_, [&](const auto& entry) { return entry.second.group == groups.size(); });
        throw;
    }
}

const FlashOptions& OptimizerImpl::options_of(const Parameter& parameter) const {
    return dynamic_cast<const FlashOptions&>(std::as_const(owner->param_groups()[parameter.group]).options());
}

void OptimizerImpl::refresh() {
    ++generation_;
    auto& groups = owner->param_groups();
    bool has_new = false;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        auto* options = groups[g].has_options() ? dynamic_cast<FlashOptions*>(&groups[g].options()) : nullptr;
        if (options == nullptr) {
            throw InvalidArgument("group " + std::to_string(g) +
                                  " has no options of flashoptim::libtorch; add groups with add_param_group");
        }
        options->remember_first_learning_rate();
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
                has_new = true;
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
        }
    }
    std::erase_if(parameters_, [this](const auto& entry) { return entry.second.generation != generation_; });
    if (has_new) refuse_shared_memory();
}

void OptimizerImpl::adopt(const torch::Tensor& tensor, std::size_t group, std::size_t index) {
    Parameter parameter;
    parameter.name = "group " + std::to_string(group) + ", parameter " + std::to_string(index);
    const auto refuse = [&](const std::string& why) { throw InvalidArgument(parameter.name + ' ' + why); };
    if (!tensor.defined()) refuse("is undefined; give tensors that hold memory");
    parameter.name += " (" + describe(tensor) + ')';
    if (tensor.layout() != torch::kStrided) refuse("is not a strided tensor; give a dense one");
    if (!tensor.device().is_cpu()) {
        refuse("is on " + tensor.device().str() + "; all parameters must be on the CPU");
    }
    if (!is_steppable(tensor.scalar_type())) {
        refuse("has a dtype that cannot be stepped; cast it to float32, bfloat16 or float16");
    }
    if (!tensor.is_leaf()) refuse("is not a leaf tensor; optimize the tensor that it was computed from");
    if (tensor.is_neg()) refuse("is a lazily negated view; give the tensor that resolve_neg() returns");
    parameter.tensor = tensor;
    parameter.group = group;
    parameter.generation = generation_;
    parameter.layout = layout_of(view_of(tensor), parameter.name);
    parameter.plan = plan_of(rule, options_of(parameter), tensor, parameter.layout, parameter.name);
    parameters_.emplace(tensor.unsafeGetTensorImpl(), std::move(parameter));
}

void OptimizerImpl::refuse_shared_memory() const {
    std::vector<const Parameter*> by_address;
    for (const auto& [key, parameter] : parameters_) {
        if (parameter.tensor.numel() > 0) by_address.push_back(&parameter);
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
}

void OptimizerImpl::update(Parameter& parameter) {
    const auto& tensor = parameter.tensor;
    const bool same = tensor.device().is_cpu() &&
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
        auto fresh = new_state(rule);
        allocate_state(parameter, plan, parameter.layout, parameter.tensor.strides(), *fresh);
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
    allocate_state(parameter, parameter.plan, parameter.layout, parameter.tensor.strides(), *state);
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

std::optional<torch::Tensor> OptimizerImpl::gradient_of(const Parameter& parameter) const {
    const auto& tensor = parameter.tensor;
    const auto& gradient = parameter.gradient.defined() ? parameter.gradient : tensor.grad();
    if (!gradient.defined()) return std::nullopt;
    const auto refuse = [&](const std::string& why) {
        throw InvalidArgument(parameter.name + ": its gradient " + why);
    };
    if (gradient.layout() != torch::kStrided) {
        refuse("is sparse; make it dense (for an embedding: EmbeddingOptions().sparse(false))");
    }
    if (!gradient.device().is_cpu())
        refuse("is on " + gradient.device().str() + "; move it to the parameter's device, the CPU");
    if (!is_steppable(gradient.scalar_type())) {
        refuse("is " + name_of(gradient.scalar_type()) + "; give float32, bfloat16 or float16");
    }
    if (gradient.sizes() != tensor.sizes()) {
        refuse("has the shape " + describe(gradient.sizes()) + "; give one of the parameter's shape");
    }
    return in_order(gradient.detach(), tensor.strides(), gradient.scalar_type());
}

void OptimizerImpl::append(Parameter& parameter, StepBatch& batch) {
    auto gradient = gradient_of(parameter);
    if (!gradient) return;
    const auto& options = options_of(parameter);
    auto& state = ensure_state(parameter);
    StepItem item;
    item.layout = &parameter.layout;
    item.plan = parameter.plan;
    item.weight = parameter.tensor.mutable_data_ptr();
    item.state = buffers(state, parameter.plan, parameter.name);
    item.gradient = gradient->const_data_ptr();
    item.gradient_dtype = dtype_of(gradient->scalar_type()).value();
    item.gradient_factor = static_cast<float>(gradient_factor);
    item.rule = rule;
    item.hyperparameters = options.hyperparameters();
    item.step = state.step() + 1;
    item.has_momentum = state.has_momentum();
    item.check_gradient = options.checks_gradients();
    batch.items.push_back(item);
    batch.parameters.push_back(&parameter);
    batch.gradients.push_back(std::move(*gradient));
}

void OptimizerImpl::count_bad(const StepBatch& batch, std::size_t n) const {
    auto& state = *state_of(*batch.parameters[n]);
    state.bad_elements(state.bad_elements() + static_cast<std::int64_t>(batch.items[n].bad_elements));
}

void OptimizerImpl::run(StepBatch& batch) {
    last_step = {};
    if (batch.items.empty()) return;
    const auto policy_of = [&](std::size_t n) { return options_of(*batch.parameters[n]).nonfinite_policy(); };
    bool must_count = false;
    for (std::size_t n = 0; n < batch.items.size(); ++n)
        must_count = must_count || policy_of(n) != NonFinite::kSkipElement;
    if (must_count) {
        last_step.bad_elements = count_bad_gradients(batch.items, pool());
        for (std::size_t n = 0; n < batch.items.size(); ++n) {
            if (batch.items[n].bad_elements != 0 && policy_of(n) != NonFinite::kSkipElement)
                last_step.skipped = true;
        }
        if (last_step.skipped) {
            for (std::size_t n = 0; n < batch.items.size(); ++n) count_bad(batch, n);
            for (std::size_t n = 0; n < batch.items.size(); ++n) {
                if (batch.items[n].bad_elements == 0 || policy_of(n) != NonFinite::kError) continue;
                throw NonFiniteError(batch.parameters[n]->name + ": " +
                                     std::to_string(batch.items[n].bad_elements) +
                                     " elements of its gradient are NaN, infinite or at least 2^48; nothing "
                                     "was stepped: lower the "
                                     "loss scale or the learning rate, or choose NonFinite::kSkipElement");
            }
            return;
        }
    }
    flashoptim::step(batch.items, pool());
    last_step.bad_elements = 0;
    for (std::size_t n = 0; n < batch.items.size(); ++n) {
        const auto& item = batch.items[n];
        const auto& parameter = *batch.parameters[n];
        auto& state = *state_of(parameter);
        state.step(item.step);
        count_bad(batch, n);
        if (state.first_moment().defined()) state.has_momentum(true);
        last_step.bad_elements += item.bad_elements;
        if (!parameter.tensor.is_inference()) torch::autograd::impl::bump_version(parameter.tensor);
    }
}

void OptimizerImpl::set_gradient(Parameter& parameter, const torch::Tensor& gradient) {
    const auto before = std::exchange(parameter.gradient, gradient);
    try {
        gradient_of(parameter);
    } catch (...) {
        parameter.gradient = before;
        throw;
    }
}

void OptimizerImpl::clear_gradients() {
    for (auto& [key, parameter] : parameters_) parameter.gradient.reset();
}

StepBatch OptimizerImpl::all_with_gradients() {
    refresh();
    StepBatch batch;
    for (const auto& group : owner->param_groups()) {
        for (const auto& tensor : group.params()) append(parameters_.at(tensor.unsafeGetTensorImpl()), batch);
    }
    return batch;
}

void OptimizerImpl::step_all() {
    auto batch = all_with_gradients();
    run(batch);
}

void OptimizerImpl::step_one(const torch::Tensor& tensor) {
    const auto found = parameters_.find(tensor.unsafeGetTensorImpl());
    auto& parameter = found == parameters_.end() ? find(tensor) : found->second;
    check_hyperparameters(rule, options_of(parameter).hyperparameters());
    update(parameter);
    StepBatch batch;
    append(parameter, batch);
    run(batch);
}

double OptimizerImpl::grad_norm() {
    const auto batch = all_with_gradients();
    return batch.items.empty() ? 0.0 : flashoptim::grad_norm(batch.items, pool());
}

ThreadPool& OptimizerImpl::pool() {
    if (!pool_ || pool_->threads() != threads) pool_.emplace(threads);
    return *pool_;
}

bool OptimizerImpl::is_released() {
    const auto control = release.lock();
    if (!control) return false;
    if (!std::exchange(control->said_so, true)) {
        TORCH_WARN(
            "flashoptim: step() and zero_grad() do nothing while GradientRelease lives: backward() steps "
            "each parameter and frees "
            "its gradient");
    }
    return true;
}

}  // namespace flashoptim::libtorch
