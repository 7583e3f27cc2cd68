// A step: gradients are checked and brought into their parameter's order, then the core is called once.
#include <algorithm>
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
    if (gradient.device() != tensor.device()) {
        refuse("is on " + gradient.device().str() + "; move it to the parameter's device, " +
               tensor.device().str());
    }
    if (!is_steppable(gradient.scalar_type())) {
        refuse("is " + name_of(gradient.scalar_type()) + "; give float32, bfloat16 or float16");
    }
    if (gradient.sizes() != tensor.sizes()) {
        refuse("has the shape " + describe(gradient.sizes()) + "; give one of the parameter's shape");
    }
    return in_order(gradient.detach(), tensor.strides(), gradient.scalar_type());
}

void OptimizerImpl::append(Parameter& parameter, const torch::Tensor& given, DeviceList& list,
                           std::vector<StepBatch>& batches) {
    auto gradient = ordered_gradient(parameter, given);
    if (!gradient) return;
    const auto& device = parameter.device;
    auto place = std::ranges::find(batches, device, &StepBatch::device);
    if (place == batches.end()) {
        if (is_on_device(device) && !list) list.emplace(make_stepper(device));
        place = batches.insert(batches.end(), {device, list ? &*list : nullptr, {}, {}, {}});
    }
    auto& batch = *place;
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

void OptimizerImpl::count_bad(const void* key, std::uint64_t count) {
    const auto found = parameters_.find(key);
    auto* const state = found == parameters_.end() ? nullptr : state_of(found->second);
    if (state != nullptr) state->bad_elements(state->bad_elements() + static_cast<std::int64_t>(count));
}

void OptimizerImpl::collect_counts() {
    const auto collect = [this](DeviceList& list) {
        if (list) list->collect([this](const void* key, std::uint64_t count) { count_bad(key, count); });
    };
    for (auto& [index, list] : device_lists_) collect(list);
    for (auto& [key, parameter] : parameters_) collect(parameter.alone);
    collect_steps();
}

bool OptimizerImpl::must_count(const std::vector<StepBatch>& batches) const {
    return std::ranges::any_of(batches, [&](const StepBatch& batch) {
        return std::ranges::any_of(batch.parameters,
                                   [&](const auto* p) { return policy_of(*p) != NonFinite::kSkipElement; });
    });
}

bool OptimizerImpl::is_kept_back(std::vector<StepBatch>& batches) {
    if (!must_count(batches)) return false;
    const auto keeps_back = [this](const Parameter* p) { return policy_of(*p) != NonFinite::kSkipElement; };
    for (auto& batch : batches) {
        last_step.bad_elements += batch.stepper != nullptr
                                      ? (*batch.stepper)->count_bad_gradients(batch.items, batch.numbers())
                                      : count_bad_gradients(batch.items, pool());
        for (std::size_t n = 0; n < batch.items.size(); ++n) {
            if (batch.items[n].bad_elements != 0 && keeps_back(batch.parameters[n])) last_step.skipped = true;
        }
    }
    return last_step.skipped;
}

void OptimizerImpl::step_batch(StepBatch& batch) {
    if (batch.stepper != nullptr) {
        std::vector<const void*> keys;
        for (const auto* p : batch.parameters) keys.push_back(p->tensor.unsafeGetTensorImpl());
        batch.stepper->step(
            batch.items, keys, [this](const void* key, std::uint64_t count) { count_bad(key, count); },
            batch.numbers());
    } else {
        last_step.bad_elements += flashoptim::step(batch.items, pool());
    }
    for (std::size_t n = 0; n < batch.items.size(); ++n) {
        const auto& item = batch.items[n];
        const auto& parameter = *batch.parameters[n];
        auto& state = *state_of(parameter);
        if (!parameter.counts_on_device) {
            state.step(item.step);
            if (state.first_moment().defined()) state.has_momentum(true);
        }
        if (!parameter.tensor.is_inference()) torch::autograd::impl::bump_version(parameter.tensor);
        if (batch.stepper == nullptr && item.bad_elements != 0)
            count_bad(parameter.tensor.unsafeGetTensorImpl(), item.bad_elements);
    }
}

void OptimizerImpl::run(std::vector<StepBatch>& batches, const GradientNumbers& numbers) {
    last_step = {};
    for (auto& batch : batches) {
        for (std::size_t n = 0; n < batch.items.size(); ++n) {
            const auto& parameter = *batch.parameters[n];
            if (state_of(parameter) == nullptr)
                batch.items[n].state = buffers(ensure_state(parameter), parameter.plan, parameter.name);
        }
    }
    bring_factors(batches, numbers);
    if (is_found_inf(batches, numbers.found_inf)) {
        last_step.skipped = true;
        return;
    }
    count_on_device(batches);
    if (!is_kept_back(batches)) {
        last_step.bad_elements = 0;
        for (auto& batch : batches) step_batch(batch);
        return;
    }
    for (const auto& batch : batches) {
        for (std::size_t n = 0; n < batch.items.size(); ++n)
            count_bad(batch.parameters[n]->tensor.unsafeGetTensorImpl(), batch.items[n].bad_elements);
    }
    for (const auto& batch : batches) {
        for (std::size_t n = 0; n < batch.items.size(); ++n) {
            if (batch.items[n].bad_elements == 0 || policy_of(*batch.parameters[n]) != NonFinite::kError)
                continue;
            throw NonFiniteError(batch.parameters[n]->name + ": " +
                                 std::to_string(batch.items[n].bad_elements) +
                                 " elements of its gradient are NaN, infinite or at least 2^48; nothing "
                                 "was stepped: lower the "
                                 "loss scale or the learning rate, or choose NonFinite::kSkipElement");
        }
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

std::vector<StepBatch> OptimizerImpl::all_with_gradients() {
    std::vector<StepBatch> batches;
    for (auto* parameter : all()) {
        append(*parameter, parameter->gradient.defined() ? parameter->gradient : parameter->tensor.grad(),
               device_lists_[parameter->device.index()], batches);
    }
    return batches;
}

void OptimizerImpl::step_all() {
    auto batches = all_with_gradients();
    // The coefficient is of these gradients: they are clipped in another attempt, too, and those of the next step are not.
    try {
        run(batches, gradient_numbers);
    } catch (const NonFiniteError&) {
        gradient_numbers.clip_coefficient.reset();
        throw;
    }
    gradient_numbers.clip_coefficient.reset();
}

void OptimizerImpl::step_one(const torch::Tensor& tensor) {
    const auto found = parameters_.find(tensor.unsafeGetTensorImpl());
    auto& parameter = found == parameters_.end() ? find(tensor) : found->second;
    check_hyperparameters(rule, options_of(parameter).hyperparameters());
    update(parameter);
    if (parameter.memory != tensor.const_data_ptr()) refresh();
    std::vector<StepBatch> batches;
    append(parameter, tensor.grad(), parameter.alone, batches);
    run(batches, {gradient_numbers.grad_scale, {}, gradient_numbers.found_inf});
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
