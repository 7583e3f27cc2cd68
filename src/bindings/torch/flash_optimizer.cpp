// The public API of the LibTorch optimizers. It checks arguments and forwards them. The step is in
// flash_optimizer_step.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

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
    return is_aligned(number) ? number.detach() : number.detach().clone();
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
    const torch::NoGradGuard no_gradients;
    if (impl_->is_released()) {
        for (const auto& tensor : impl_->gradients_without_hook()) impl_->step_one(tensor);
        return loss;
    }
    impl_->step_all();
    return loss;
}

const StepReport& FlashOptimizer::last_step() const { return impl_->last_step; }

void FlashOptimizer::zero_grad(bool set_to_none) {
    if (impl_->is_released()) {
        for (const auto& tensor : impl_->gradients_without_hook()) tensor.mutable_grad().reset();
        return;
    }
    if (set_to_none) {
        // Torch's own function allocates memory in between.
        for (const auto& group : param_groups()) {
            for (const auto& tensor : group.params()) {
                if (tensor.grad().defined()) tensor.mutable_grad().reset();
            }
        }
    } else {
        Optimizer::zero_grad(set_to_none);
    }
    impl_->clear_gradients();
    impl_->gradient_numbers.forget_clipping();  // it belonged to the old gradients
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
        report.corrections += bytes(state->at(kCorrectionPlace));
        for (int place = kCorrectionPlace + 1; place < kMaxBuffers; ++place) {
            (is_scales_place(place) ? report.scales : report.moments) += bytes(state->at(place));
        }
    }
    return report;
}

std::int64_t FlashOptimizer::bad_elements(const torch::Tensor& parameter) const {
    impl_->collect_counts();
    const auto* state = impl_->state_of(impl_->find(parameter));
    return state == nullptr ? 0 : state->bad_elements();
}

std::int64_t FlashOptimizer::bad_elements() const {
    std::uint64_t sum = 0;
    impl_->collect_counts();
    for (const auto* parameter : impl_->all()) {
        if (const auto* state = impl_->state_of(*parameter))
            sum += static_cast<std::uint64_t>(state->bad_elements());
    }
    return static_cast<std::int64_t>(
        std::min(sum, static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())));
}

torch::Tensor FlashOptimizer::master(const torch::Tensor& tensor) {
    const torch::NoGradGuard no_gradients;
    return impl_->master(impl_->find(tensor));
}

void FlashOptimizer::set_master(const torch::Tensor& tensor, const torch::Tensor& values) {
    const torch::NoGradGuard no_gradients;
    auto& parameter = impl_->find(tensor);
    if (!values.defined() || values.sizes() != tensor.sizes() || !values.is_floating_point()) {
        throw InvalidArgument(parameter.name + ": its master cannot be " +
                              (values.defined() ? describe(values) : "undefined") +
                              "; give floating-point values of the parameter's shape");
    }
    impl_->set_master(parameter, values);
}

void FlashOptimizer::refresh_masters(const torch::Tensor& parameter) {
    impl_->clear_correction(impl_->find(parameter));
}

void FlashOptimizer::refresh_masters() {
    for (const auto* parameter : impl_->all()) impl_->clear_correction(*parameter);
}

std::vector<std::pair<std::string, torch::Tensor>> FlashOptimizer::state_tensors(
    const torch::Tensor& parameter) {
    const torch::NoGradGuard no_gradients;
    auto& found = impl_->find(parameter);
    if (impl_->state_of(found) == nullptr) return {};
    auto fresh = impl_->fresh_state(found);
    auto named = (fresh.state ? *fresh.state : *impl_->state_of(found)).tensors();
    impl_->adopt(found, std::move(fresh));
    return named;
}

void FlashOptimizer::load_state_tensors(const torch::Tensor& tensor,
                                        const std::map<std::string, torch::Tensor>& tensors,
                                        at::IntArrayRef saved_strides) {
    const torch::NoGradGuard no_gradients;
    auto& parameter = impl_->find(tensor);
    impl_->collect_counts();
    if (tensors.empty()) return impl_->set_state(parameter, nullptr, {});
    const auto* old = impl_->state_of(parameter);
    auto form = form_of_saved(parameter, saved_strides, tensor.scalar_type(), impl_->rule,
                              impl_->options_of(parameter));
    auto state = restore_state(impl_->rule, parameter, form, tensors);
    if (old != nullptr) state->step(old->step()).bad_elements(old->bad_elements());
    state->has_momentum(state->at(codes_place(0)).defined());
    impl_->set_state(parameter, std::move(state), std::move(form));
}

std::int64_t FlashOptimizer::step_count(const torch::Tensor& parameter) const {
    impl_->collect_steps();
    const auto* state = impl_->state_of(impl_->find(parameter));
    return state == nullptr ? 0 : state->step();
}

void FlashOptimizer::set_step_count(const torch::Tensor& parameter, std::int64_t steps) {
    const torch::NoGradGuard no_gradients;
    if (steps < 0) throw InvalidArgument("a step count is " + std::to_string(steps) + "; give 0 or more");
    auto& found = impl_->find(parameter);
    impl_->collect_steps();
    impl_->any_state(found).step(steps);
}

void FlashOptimizer::set_bad_elements(const torch::Tensor& parameter, std::int64_t elements) {
    const torch::NoGradGuard no_gradients;
    if (elements < 0)
        throw InvalidArgument("a count of bad elements is " + std::to_string(elements) + "; give 0 or more");
    auto& found = impl_->find(parameter);
    impl_->collect_counts();
    impl_->any_state(found).bad_elements(elements);
}

bool FlashOptimizer::has_momentum(const torch::Tensor& parameter) const {
    impl_->collect_steps();
    const auto* state = impl_->state_of(impl_->find(parameter));
    return state != nullptr && state->has_momentum();
}

void FlashOptimizer::set_has_momentum(const torch::Tensor& parameter, bool has) {
    const torch::NoGradGuard no_gradients;
    auto& found = impl_->find(parameter);
    impl_->collect_steps();
    impl_->any_state(found).has_momentum(has);
}

}  // namespace flashoptim::libtorch
