// Numbers that apply to all gradients: loss scale, clip coefficient, found_inf, and the norm for clipping.
// They may be on a device. They stay there unless parameters on the CPU need them, so that a step does not
// block.
#include <algorithm>

#include "optimizer_impl.h"

namespace flashoptim::libtorch {

namespace {

/// Copies a number to a device. Undefined stays undefined.
torch::Tensor brought(const torch::Tensor& number, const torch::Device& device, bool non_blocking = true) {
    return number.defined() ? number.to(device, non_blocking) : number;
}

const float* memory_of_number(const torch::Tensor& number) {
    return number.defined() ? number.const_data_ptr<float>() : nullptr;
}

}  // namespace

DeviceNumbers StepBatch::numbers() const {
    return {memory_of_number(here.grad_scale), memory_of_number(here.clip_coefficient),
            memory_of_number(here.found_inf), steps_done};
}

void OptimizerImpl::bring_factors(std::vector<StepBatch>& batches, const GradientNumbers& numbers) {
    std::optional<float> factor;  // for parameters on the CPU
    for (auto& batch : batches) {
        if (batch.stepper != nullptr) {
            batch.here.grad_scale = brought(numbers.grad_scale, batch.device);
            batch.here.clip_coefficient = brought(numbers.clip_coefficient, batch.device);
            continue;
        }
        if (!factor) {
            const auto scale = brought(numbers.grad_scale, torch::kCPU, /*non_blocking=*/false);
            const auto clip = brought(numbers.clip_coefficient, torch::kCPU, /*non_blocking=*/false);
            factor = factor_of({memory_of_number(scale), memory_of_number(clip), nullptr, {}});
        }
        for (auto& item : batch.items) item.gradient_factor *= *factor;
    }
}

bool OptimizerImpl::is_found_inf(std::vector<StepBatch>& batches, const torch::Tensor& found_inf) {
    if (!found_inf.defined()) return false;
    // The host steps parameters on the CPU, and under these policies it blocks anyway.
    const bool host_must_know =
        must_count(batches) ||
        std::ranges::any_of(batches, [](const StepBatch& batch) { return batch.stepper == nullptr; });
    if (host_must_know) return found_inf.item<float>() != 0.0F;
    for (auto& batch : batches) batch.here.found_inf = brought(found_inf, batch.device);
    return false;
}

torch::Tensor OptimizerImpl::grad_norm() {
    auto batches = all_with_gradients(/*makes_states=*/false);
    bring_factors(batches, {gradient_numbers.grad_scale, {}, {}});
    count_on_device(batches);  // as in step(), so that the cached device list is reused
    std::vector<torch::Tensor> norms;
    bool all_on_devices = !batches.empty();
    for (auto& batch : batches) {
        auto norm = torch::zeros({}, torch::dtype(torch::kFloat64).device(batch.device));
        if (batch.stepper != nullptr) {
            DeviceNorm to;
            to.norm = norm.mutable_data_ptr<double>();
            (*batch.stepper)->grad_norm(batch.items, batch.numbers(), to);
        } else {
            norm.fill_(flashoptim::grad_norm(batch.items, pool()));
            all_on_devices = false;
        }
        norms.push_back(norm);
    }
    if (norms.size() == 1) return norms.front();
    const auto home = all_on_devices ? batches.front().device : torch::Device(torch::kCPU);
    auto sum = torch::zeros({}, torch::dtype(torch::kFloat64).device(home));
    for (const auto& norm : norms) sum += norm.to(home, /*non_blocking=*/all_on_devices).square();
    return sum.sqrt();
}

void GradientNumbers::follow_clipped() noexcept {
    while (!clipped.empty() && clipped.back().expired()) clipped.pop_back();
    if (clipped.empty()) clip_coefficient.reset();
}

torch::Tensor OptimizerImpl::clip_grad_norm(double max_norm) {
    constexpr double kTorchClipEpsilon = 1e-6;
    if (!release.expired()) {
        throw InvalidArgument(
            "gradients cannot be clipped by the norm of all while GradientRelease frees them one by one; "
            "remove it first");
    }
    const auto norm = grad_norm();
    auto coefficient =
        torch::full_like(norm, max_norm).div_(norm + kTorchClipEpsilon).clamp_max_(1.0).to(torch::kFloat32);
    std::vector<WeakTensor> clipped;
    for (const auto* parameter : all()) {
        const auto& gradient = parameter->gradient_now();
        if (gradient.defined()) clipped.emplace_back(gradient.getIntrusivePtr());
    }
    gradient_numbers.clip_coefficient = std::move(coefficient);
    gradient_numbers.clipped = std::move(clipped);
    return norm;
}

}  // namespace flashoptim::libtorch
