// Gradient release: hooks that step a parameter inside backward() and free its gradient.
#include <mutex>
#include <utility>

#include "optimizer_impl.h"

namespace flashoptim::libtorch {

namespace {

class ReleaseHook final : public torch::autograd::PostAccumulateGradHook {
public:
    explicit ReleaseHook(std::shared_ptr<ReleaseControl> control) : control_(std::move(control)) {}

    void operator()(const torch::Tensor& parameter) override {
        const std::lock_guard lock(control_->mutex);
        if (control_->optimizer == nullptr || !parameter.grad().defined()) return;
        const torch::NoGradGuard no_gradients;
        try {
            control_->optimizer->step_one(parameter);
        } catch (...) {
            parameter.mutable_grad().reset();  // frees it, so that the next backward() does not add to it
            throw;
        }
        parameter.mutable_grad().reset();
    }

    [[nodiscard]] bool belongs_to(const ReleaseControl* control) const { return control_.get() == control; }

private:
    std::shared_ptr<ReleaseControl> control_;
};

bool has_hook_of(const torch::Tensor& tensor, const ReleaseControl* control) {
    const auto* hook =
        dynamic_cast<const ReleaseHook*>(torch::autograd::impl::post_acc_grad_hooks(tensor).get());
    return hook != nullptr && hook->belongs_to(control);
}

}  // namespace

std::vector<torch::Tensor> OptimizerImpl::gradients_without_hook() const {
    const auto control = release.lock();
    std::vector<torch::Tensor> found;
    for (const auto& group : std::as_const(*owner).param_groups()) {
        for (const auto& tensor : group.params()) {
            if (tensor.grad().defined() && !has_hook_of(tensor, control.get())) found.push_back(tensor);
        }
    }
    return found;
}

GradientRelease::GradientRelease(FlashOptimizer& optimizer) {
    auto& impl = *optimizer.impl_;
    if (!impl.release.expired()) {
        throw InvalidArgument("the optimizer has a GradientRelease already; remove() that one first");
    }
    for (const auto* parameter : impl.all()) {
        if (!parameter->gradient.defined() && !parameter->tensor.grad().defined()) continue;
        throw InvalidArgument(parameter->name +
                              " has a gradient already, and the first backward() would add to it; call "
                              "zero_grad() before GradientRelease is made");
    }
    auto control = std::make_shared<ReleaseControl>();
    control->optimizer = &impl;
    for (const auto& group : optimizer.param_groups()) {
        for (const auto& tensor : group.params()) {
            if (torch::autograd::impl::post_acc_grad_hooks(tensor) != nullptr) {
                throw InvalidArgument(impl.find(tensor).name +
                                      " has a post-accumulate-gradient hook already; remove that one first");
            }
            control->parameters.push_back(tensor);
        }
    }
    control_ = control;
    try {
        for (const auto& tensor : control->parameters) {
            torch::autograd::impl::set_post_acc_grad_hooks(tensor, std::make_unique<ReleaseHook>(control));
        }
    } catch (...) {
        remove();  // the hooks made so far
        throw;
    }
    impl.release = control;
}

GradientRelease::~GradientRelease() { remove(); }

GradientRelease::GradientRelease(GradientRelease&& other) noexcept : control_(std::move(other.control_)) {}

GradientRelease& GradientRelease::operator=(GradientRelease&& other) noexcept {
    if (this != &other) {
        remove();
        control_ = std::move(other.control_);
    }
    return *this;
}

void GradientRelease::remove() noexcept {
    if (!control_) return;
    for (const auto& tensor : control_->parameters) {
        if (has_hook_of(tensor, control_.get()))
            torch::autograd::impl::set_post_acc_grad_hooks(tensor, nullptr);
    }
    control_.reset();
}

}  // namespace flashoptim::libtorch
