// The public face of the optimizers: what is checked and where it goes. The step itself is in optimizer_impl.cpp.
#include <cmath>
#include <utility>

#include "flashoptim/quantize.h"
#include "optimizer_impl.h"
#include "state_buffers.h"
#include "state_tensors.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

torch::Tensor one_number(const torch::Tensor& number, const std::string& name) {
    if (!number.defined()) return {};
    if (number.numel() != 1 || number.scalar_type() != torch::kFloat32 ||
        number.layout() != torch::kStrided) {
        throw InvalidArgument(name + " is " + describe(number) +
                              "; give a float32 tensor of one element, or an undefined one");
    }
    return number.detach();
}

}  // namespace

FlashOptimizer::FlashOptimizer(Rule rule, std::unique_ptr<FlashOptions> defaults,
                               const std::vector<torch::optim::OptimizerParamGroup>& groups)
    : Optimizer(std::vector<torch::optim::OptimizerParamGroup>(), std::move(defaults)),
      impl_(std::make_unique<OptimizerImpl>(*this, rule)) {
    for (const auto& group : groups) add_param_group(group);
}

FlashOptimizer::~FlashOptimizer() = default;

FlashOptimizer::FlashOptimizer(FlashOptimizer&& other) noexcept
    : Optimizer(std::move(other)), impl_(std::move(other.impl_)) {
    if (impl_) impl_->owner = this;
}

FlashOptimizer& FlashOptimizer::operator=(FlashOptimizer&& other) noexcept {
    if (this != &other) {
        impl_ = std::move(other.impl_);
        Optimizer::operator=(std::move(other));
        if (impl_) impl_->owner = this;
    }
    return *this;
}

Rule FlashOptimizer::rule() const { return impl_->rule; }

void FlashOptimizer::add_param_group(const torch::optim::OptimizerParamGroup& group) {
    impl_->add_group(group);
}

torch::Tensor FlashOptimizer::step(LossClosure closure) {
    torch::Tensor loss;
    if (closure) {
        const at::AutoGradMode with_gradients(true);
        loss = closure();
    }
    if (impl_->is_released()) return loss;
    const torch::NoGradGuard no_gradients;
    impl_->step_all();
    return loss;
}

const StepReport& FlashOptimizer::last_step() const { return impl_->last_step; }

void FlashOptimizer::zero_grad(bool set_to_none) {
    if (impl_->is_released()) return;
    impl_->clear_gradients();
    impl_->gradient_numbers.clip_coefficient.reset();  // of those
    Optimizer::zero_grad(set_to_none);
}

void FlashOptimizer::set_gradient(const torch::Tensor& parameter, const torch::Tensor& gradient) {
    impl_->set_gradient(impl_->find(parameter), gradient);
}

void FlashOptimizer::set_gradient_factor(double factor) {
    if (!std::isfinite(static_cast<float>(factor))) {
        throw InvalidArgument("the gradient factor is " + std::to_string(factor) + "; give a finite one");
    }
    impl_->gradient_factor = factor;
}

void FlashOptimizer::set_grad_scale(const torch::Tensor& scale) {
    impl_->gradient_numbers.grad_scale = one_number(scale, "the grad scale");
}

void FlashOptimizer::set_found_inf(const torch::Tensor& found_inf) {
    impl_->gradient_numbers.found_inf = one_number(found_inf, "found_inf");
}

double FlashOptimizer::grad_norm() {
    const torch::NoGradGuard no_gradients;
    return impl_->grad_norm().item<double>();
}

torch::Tensor FlashOptimizer::clip_grad_norm(double max_norm) {
    if (!(max_norm >= 0.0)) {
        throw InvalidArgument("the maximal norm is " + std::to_string(max_norm) + "; give 0 or more");
    }
    const torch::NoGradGuard no_gradients;
    return impl_->clip_grad_norm(max_norm);
}

void FlashOptimizer::set_threads(int threads) {
    if (threads < 1) throw InvalidArgument("threads is " + std::to_string(threads) + "; give at least 1");
    impl_->chosen_threads = threads;
}
int FlashOptimizer::threads() const { return impl_->threads(); }

MemoryReport FlashOptimizer::memory_report() const {
    MemoryReport report;
    const auto bytes = [](const torch::Tensor& tensor) { return tensor.defined() ? tensor.nbytes() : 0; };
    for (const auto* parameter : impl_->all()) {
        const auto& gradient = parameter->tensor.grad();
        report.parameters += parameter->tensor.numel();
        report.weights += bytes(parameter->tensor);
        report.gradients += bytes(gradient);
        if (!parameter->gradient.is_same(gradient)) report.gradients += bytes(parameter->gradient);
        const auto* state = impl_->state_of(*parameter);
        if (state == nullptr) continue;
        report.corrections += bytes(state->error_bits());
        report.moments += bytes(state->first_moment()) + bytes(state->second_moment());
        report.scales += bytes(state->first_moment_scales()) + bytes(state->second_moment_scales());
    }
    return report;
}

std::int64_t FlashOptimizer::bad_elements(const torch::Tensor& parameter) const {
    const auto* state = impl_->state_of(impl_->find(parameter));
    impl_->collect_counts();
    return state == nullptr ? 0 : state->bad_elements();
}

std::int64_t FlashOptimizer::bad_elements() const {
    std::int64_t sum = 0;
    impl_->collect_counts();
    for (const auto* parameter : impl_->all()) {
        if (const auto* state = impl_->state_of(*parameter)) sum += state->bad_elements();
    }
    return sum;
}

torch::Tensor FlashOptimizer::master(const torch::Tensor& tensor) {
    const torch::NoGradGuard no_gradients;
    const auto& parameter = impl_->find(tensor);
    const auto* state = impl_->state_of(parameter);
    auto masters = torch::empty_strided(tensor.sizes(), tensor.strides(), torch::dtype(torch::kFloat32));
    if (state == nullptr) return on_device(masters.copy_(tensor), tensor.device());
    const auto weight = on_device(tensor.detach(), torch::kCPU);
    const auto corrections = on_device(state->error_bits(), torch::kCPU);
    join_weights(parameter.plan, weight.const_data_ptr(),
                 corrections.defined() ? corrections.const_data_ptr() : nullptr, memory_of<float>(masters));
    return on_device(masters, tensor.device());
}

void FlashOptimizer::set_master(const torch::Tensor& tensor, const torch::Tensor& values) {
    const torch::NoGradGuard no_gradients;
    const auto& parameter = impl_->find(tensor);
    if (!values.defined() || values.sizes() != tensor.sizes() || !values.is_floating_point()) {
        throw InvalidArgument(parameter.name + ": its master cannot be " +
                              (values.defined() ? describe(values) : "undefined") +
                              "; give floating-point values of the parameter's shape");
    }
    const auto masters = in_order(on_device(values.detach(), torch::kCPU), tensor.strides(), torch::kFloat32);
    auto& state = impl_->ensure_state(parameter);
    // On the CPU themselves, else copies of them.
    const auto weight = on_device(tensor.detach(), torch::kCPU);
    const auto corrections = on_device(state.error_bits(), torch::kCPU);
    split_weights(parameter.plan, memory_of<const float>(masters), weight.mutable_data_ptr(),
                  corrections.defined() ? corrections.mutable_data_ptr() : nullptr);
    if (!tensor.is_cpu()) {
        tensor.detach().copy_(weight);
        if (corrections.defined()) state.error_bits().copy_(corrections);
    }
    torch::autograd::impl::bump_version(tensor);
}

void FlashOptimizer::refresh_masters(const torch::Tensor& parameter) {
    impl_->clear_correction(impl_->find(parameter));
}

void FlashOptimizer::refresh_masters() {
    for (const auto* parameter : impl_->all()) impl_->clear_correction(*parameter);
}

std::vector<std::pair<std::string, torch::Tensor>> FlashOptimizer::state_tensors(
    const torch::Tensor& parameter) {
    const auto* state = impl_->state_of(impl_->find(parameter));
    if (state == nullptr) return {};
    return state->tensors();
}

void FlashOptimizer::load_state_tensors(const torch::Tensor& tensor,
                                        const std::map<std::string, torch::Tensor>& tensors,
                                        at::IntArrayRef saved_strides) {
    const torch::NoGradGuard no_gradients;
    const auto& parameter = impl_->find(tensor);
    const auto* old = impl_->state_of(parameter);
    impl_->collect_counts();
    const auto scalars = old == nullptr ? new_state(impl_->rule) : std::unique_ptr<FlashParamState>();
    std::unique_ptr<FlashParamState> state;
    if (!tensors.empty()) {
        state = restore_state(impl_->rule, impl_->options_of(parameter), parameter, tensors, saved_strides,
                              old == nullptr ? *scalars : *old);
        state->has_momentum(state->first_moment().defined());
    }
    impl_->set_state(parameter, std::move(state));
}

std::int64_t FlashOptimizer::step_count(const torch::Tensor& parameter) const {
    const auto* state = impl_->state_of(impl_->find(parameter));
    impl_->collect_steps();
    return state == nullptr ? 0 : state->step();
}

void FlashOptimizer::set_step_count(const torch::Tensor& parameter, std::int64_t steps) {
    if (steps < 0) throw InvalidArgument("a step count is " + std::to_string(steps) + "; give 0 or more");
    auto& state = impl_->ensure_state(impl_->find(parameter));
    impl_->collect_steps();
    state.step(steps);
}

void FlashOptimizer::set_bad_elements(const torch::Tensor& parameter, std::int64_t elements) {
    if (elements < 0)
        throw InvalidArgument("a count of bad elements is " + std::to_string(elements) + "; give 0 or more");
    impl_->collect_counts();
    impl_->ensure_state(impl_->find(parameter)).bad_elements(elements);
}

bool FlashOptimizer::has_momentum(const torch::Tensor& parameter) const {
    const auto* state = impl_->state_of(impl_->find(parameter));
    impl_->collect_steps();
    return state != nullptr && state->has_momentum();
}

void FlashOptimizer::set_has_momentum(const torch::Tensor& parameter, bool has) {
    auto& state = impl_->ensure_state(impl_->find(parameter));
    impl_->collect_steps();
    state.has_momentum(has);
}

}  // namespace flashoptim::libtorch
