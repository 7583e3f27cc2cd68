// A step: gradients are checked and brought into their parameter's order, then the core is called once.
#include <string>
#include <utility>

#include "optimizer_impl.h"
#include "state_buffers.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

std::optional<torch::Tensor> OptimizerImpl::ordered_gradient(const Parameter& parameter,
                                                             const torch::Tensor& gradient) {
    const auto& tensor = parameter.tensor;
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

void OptimizerImpl::append(Parameter& parameter, const torch::Tensor& given, StepBatch& batch) {
    auto gradient = ordered_gradient(parameter, given);
    if (!gradient) return;
    const auto& options = options_of(parameter);
    StepItem item;
    item.layout = &parameter.layout;
    item.plan = parameter.plan;
    item.weight = parameter.tensor.mutable_data_ptr();
    if (const auto* state = state_of(parameter)) {
        item.state = buffers(*state, parameter.plan, parameter.name);
        item.step = state->step() + 1;
        item.has_momentum = state->has_momentum();
    } else {
        item.has_momentum = false;
    }
    item.gradient = gradient->const_data_ptr();
    item.gradient_dtype = dtype_of(gradient->scalar_type()).value();
    item.gradient_factor = static_cast<float>(gradient_factor);
    item.rule = rule;
    item.hyperparameters = options.hyperparameters();
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
    for (std::size_t n = 0; n < batch.items.size(); ++n) {
        const auto& parameter = *batch.parameters[n];
        if (state_of(parameter) == nullptr)
            batch.items[n].state = buffers(ensure_state(parameter), parameter.plan, parameter.name);
    }
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
    last_step.bad_elements = flashoptim::step(batch.items, pool());
    for (std::size_t n = 0; n < batch.items.size(); ++n) {
        const auto& item = batch.items[n];
        const auto& parameter = *batch.parameters[n];
        auto& state = *state_of(parameter);
        state.step(item.step);
        count_bad(batch, n);
        if (state.first_moment().defined()) state.has_momentum(true);
        if (!parameter.tensor.is_inference()) torch::autograd::impl::bump_version(parameter.tensor);
    }
}

void OptimizerImpl::set_gradient(Parameter& parameter, const torch::Tensor& gradient) {
    if (gradient.defined() && !release.expired()) {
        throw InvalidArgument(parameter.name +
                              " cannot be given a gradient during gradient release, which steps by those of "
                              "backward(); remove the GradientRelease first");
    }
    ordered_gradient(parameter, gradient);
    parameter.gradient = gradient;
}

void OptimizerImpl::clear_gradients() {
    for (auto& [key, parameter] : parameters_) parameter.gradient.reset();
}

StepBatch OptimizerImpl::all_with_gradients() {
    StepBatch batch;
    for (auto* parameter : all()) {
        append(*parameter, parameter->gradient.defined() ? parameter->gradient : parameter->tensor.grad(),
               batch);
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
    if (parameter.memory != tensor.const_data_ptr()) refresh();
    StepBatch batch;
    append(parameter, tensor.grad(), batch);
    run(batch);
}

double OptimizerImpl::grad_norm() {
    const auto batch = all_with_gradients();
    return batch.items.empty() ? 0.0 : flashoptim::grad_norm(batch.items, pool());
}

int OptimizerImpl::threads() const { return chosen_threads.value_or(at::get_num_threads()); }

ThreadPool& OptimizerImpl::pool() {
    if (!pool_ || pool_->threads() != threads()) pool_.emplace(threads());
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
