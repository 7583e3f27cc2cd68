// The hooks behind GradientAccumulator. Knows no optimizer and no model.
#include "trainer/gradient_accumulator.h"

#include <utility>

#include "flashoptim/error.h"

namespace flashoptim::trainer {

struct GradientAccumulator::Slot {
    torch::Tensor sum;
    bool filled = false;
};

GradientAccumulator::GradientAccumulator(const std::vector<torch::Tensor>& parameters)
    : parameters_(parameters) {
    class Hook : public torch::autograd::PostAccumulateGradHook {
    public:
        explicit Hook(std::shared_ptr<Slot> slot) : slot_(std::move(slot)) {}
        void operator()(const torch::autograd::Variable& tensor) override {
            const torch::NoGradGuard no_grad;
            torch::Tensor parameter = tensor;  // another handle of the same tensor, to reach its gradient
            if (slot_->filled) {
                slot_->sum.add_(parameter.grad());
            } else if (slot_->sum.defined()) {
                slot_->sum.copy_(parameter.grad());
            } else {
                slot_->sum = parameter.grad().to(torch::kFloat32, /*non_blocking=*/false, /*copy=*/true);
            }
            slot_->filled = true;
            parameter.mutable_grad().reset();
        }

    private:
        std::shared_ptr<Slot> slot_;
    };
    for (const torch::Tensor& parameter : parameters_) {
        if (torch::autograd::impl::post_acc_grad_hooks(parameter) != nullptr) {
            throw InvalidArgument(
                "gradient accumulation: a parameter has a hook after accumulation already; remove it first");
        }
    }
    for (const torch::Tensor& parameter : parameters_) {
        slots_.push_back(std::make_shared<Slot>());
        torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<Hook>(slots_.back()));
    }
}

GradientAccumulator::~GradientAccumulator() {
    for (const torch::Tensor& parameter : parameters_) {
        torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
    }
}

torch::Tensor GradientAccumulator::sum(std::size_t index) const {
    const Slot& slot = *slots_.at(index);
    return slot.filled ? slot.sum : torch::Tensor();
}

void GradientAccumulator::clear() {
    for (const std::shared_ptr<Slot>& slot : slots_) {
        slot->filled = false;
    }
}

std::int64_t GradientAccumulator::bytes() const {
    std::int64_t total = 0;
    for (const std::shared_ptr<Slot>& slot : slots_) {
        total += slot->sum.defined() ? static_cast<std::int64_t>(slot->sum.nbytes()) : 0;
    }
    return total;
}

}  // namespace flashoptim::trainer
