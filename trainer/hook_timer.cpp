// The wrappers behind HookTimer. Knows no optimizer and no model.
#include "trainer/hook_timer.h"

#include <utility>

#include "trainer/stopwatch.h"

namespace flashoptim::trainer {
namespace {

using torch::autograd::PostAccumulateGradHook;

class TimedHook : public PostAccumulateGradHook {
public:
    TimedHook(std::unique_ptr<PostAccumulateGradHook> inner, std::shared_ptr<double> seconds)
        : inner_(std::move(inner)), seconds_(std::move(seconds)) {}

    void operator()(const torch::autograd::Variable& tensor) override {
        const Stopwatch watch;
        (*inner_)(tensor);
        *seconds_ += watch.seconds();
    }

    std::unique_ptr<PostAccumulateGradHook> take_inner() { return std::move(inner_); }

private:
    std::unique_ptr<PostAccumulateGradHook> inner_;
    std::shared_ptr<double> seconds_;
};

}  // namespace

HookTimer::HookTimer(const std::vector<torch::Tensor>& parameters) : seconds_(std::make_shared<double>(0.0)) {
    for (const torch::Tensor& parameter : parameters) {
        auto& hook = torch::autograd::impl::post_acc_grad_hooks(parameter);
        if (hook != nullptr) {
            hook = std::make_unique<TimedHook>(std::move(hook), seconds_);
            parameters_.push_back(parameter);
        }
    }
}

HookTimer::~HookTimer() {
    for (const torch::Tensor& parameter : parameters_) {
        auto& hook = torch::autograd::impl::post_acc_grad_hooks(parameter);
        if (auto* const timed = dynamic_cast<TimedHook*>(hook.get())) {
            hook = timed->take_inner();
        }
    }
}

double HookTimer::take_seconds() { return std::exchange(*seconds_, 0.0); }

}  // namespace flashoptim::trainer
