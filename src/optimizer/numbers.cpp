// Numbers that apply to all gradients and may lie in device memory: loss scale, found_inf, clip coefficient,
// and the norm from which the coefficient is computed. The host does not block to read them. If the host has
// not read found_inf, the device counts the steps.
#include <algorithm>
#include <string>

#include "core/memory_checks.h"
#include "impl.h"
#include "step/float_environment.h"
#include "step/scalars.h"

namespace flashoptim {

float factor_of(const DeviceNumbers& numbers) {
    const DefaultFloatEnvironment exact;
    float factor = 1.0F;
    if (numbers.grad_scale != nullptr) factor /= *numbers.grad_scale;
    if (numbers.clip_coefficient != nullptr) factor *= *numbers.clip_coefficient;
    return factor;
}

const float* Optimizer::Impl::checked(const float* number, const char* name) const {
    if (number == nullptr) return number;
    check_alignment(number, DType::kFloat32, name);
    if (options.device) options.device->check_memory(number, name);
    return number;
}

bool Optimizer::Impl::is_set(const float* number) const {
    float value = 0.0F;
    if (options.device) {
        options.device->copy_to_host(&value, number, sizeof value);
    } else {
        value = *number;
    }
    return value != 0.0F;
}

Optimizer::Impl::Norms* Optimizer::Impl::norms_here() {
    if (norms) return norms.get();
    if (options.device) {
        auto memory = options.device->allocate(sizeof(Norms));
        norms = {memory, reinterpret_cast<Norms*>(memory.get())};
    } else {
        norms = std::make_shared<Norms>();
    }
    return norms.get();
}

void Optimizer::Impl::take_norm(double* to, double max_norm, float* coefficient) {
    DeviceNumbers with;
    with.grad_scale = numbers.grad_scale;
    const auto chosen = all_with_gradient();
    fill_items(chosen, with);
    with.steps_done = counters_of(chosen);  // as in step(), so that the cached device list is reused
    if (auto* const stepper = stepper_of(all_on_device)) {
        return (*stepper)->grad_norm(items, with, {to, coefficient, max_norm});
    }
    *to = flashoptim::grad_norm(items, pool, options.backend);
    const DefaultFloatEnvironment exact;
    if (coefficient != nullptr) *coefficient = clip_coefficient(*to, max_norm);
}

double Optimizer::Impl::grad_norm() {
    double norm = 0.0;
    if (!options.device) {
        take_norm(&norm, 0.0, nullptr);
        return norm;
    }
    auto* const on_device = &norms_here()->taken;
    take_norm(on_device, 0.0, nullptr);
    options.device->copy_to_host(&norm, on_device, sizeof norm);
    return norm;
}

const double* Optimizer::Impl::clip_grad_norm(double max_norm) {
    auto* const here = norms_here();
    take_norm(&here->clipped, max_norm, &here->clip_coefficient);
    numbers.clip_coefficient = &here->clip_coefficient;
    return &here->clipped;
}

void Optimizer::Impl::count_on_device(std::span<Parameter* const> chosen) {
    if (parameters.size() > step_counter_count) {
        collect_steps();
        const auto count = parameters.capacity();  // capacity, not size, so that it grows seldom
        step_counters = options.device->allocate(count * sizeof(std::int64_t));
        step_counter_count = count;
    }
    for (auto* p : chosen) p->counts_on_device = true;
    device_counts_steps = true;
}

std::span<std::int64_t* const> Optimizer::Impl::counters_of(std::span<Parameter* const> chosen) {
    counters.clear();
    if (!device_counts_steps) return {};
    auto* const first = reinterpret_cast<std::int64_t*>(step_counters.get());
    for (const auto* p : chosen) {
        counters.push_back(p->counts_on_device ? first + (p - parameters.data()) : nullptr);
    }
    return counters;
}

void Optimizer::Impl::collect_steps() {
    if (!device_counts_steps) return;
    std::vector<std::int64_t> done(std::min(step_counter_count, parameters.size()));
    const auto bytes = done.size() * sizeof(std::int64_t);
    options.device->copy_to_host(done.data(), step_counters.get(), bytes);
    options.device->clear(step_counters.get(), bytes);
    for (std::size_t id = 0; id < done.size(); ++id) {
        auto& p = parameters[id];
        if (!p.counts_on_device) continue;
        p.steps += done[id];
        p.has_momentum = p.has_momentum || done[id] != 0;
        p.counts_on_device = false;
    }
    device_counts_steps = false;
}

}  // namespace flashoptim
