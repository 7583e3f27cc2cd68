// The step of the framework-free optimizer: its items, the policies for bad gradients, and steps on a device.
#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "impl.h"
#include "step/float_environment.h"

namespace flashoptim {

namespace {

constexpr auto kMostSteps = std::numeric_limits<std::int64_t>::max();

}  // namespace

const void* Optimizer::Impl::ordered_gradient(Parameter& p) {
    if (p.gradient_in_order) return p.gradient.data;
    copy_in_order(p.gradient, p.layout.strides, p.ordered_gradient.data());
    return p.ordered_gradient.data();
}

void Optimizer::Impl::fill_items(std::span<Parameter* const> chosen, const DeviceNumbers& with) {
    const DefaultFloatEnvironment exact;
    const float factor = gradient_factor * (options.device ? 1.0F : factor_of(with));
    items.resize(chosen.size());
    for (std::size_t n = 0; n < chosen.size(); ++n) {
        auto& p = *chosen[n];
        auto& item = items[n];
        if (!items_are_current || item.layout != &p.layout) {
            item.layout = &p.layout;
            item.plan = p.stored.plan;
            item.weight = p.weight.data;
            for (int place = 0; place < kMaxBuffers; ++place) {
                item.state.at(place) = p.stored.at(place).data();
            }
            item.rule = rule;
            item.hyperparameters = groups[p.group];
            item.check_gradient = options.check_gradients;
        }
        item.gradient = ordered_gradient(p);
        item.gradient_dtype = p.gradient.dtype;
        item.gradient_factor = factor;
        item.step = p.steps == kMostSteps
                        ? p.steps
                        : p.steps + 1;  // only for norms and counts: check_step_counts() refuses a step
        item.has_momentum = p.has_momentum;
    }
    items_are_current = true;
}

std::span<Optimizer::Impl::Parameter* const> Optimizer::Impl::all_with_gradient() {
    with_gradient.clear();
    for (auto& p : parameters) {
        if (p.has_gradient) with_gradient.push_back(&p);
    }
    return with_gradient;
}

CountingStepper<Optimizer::ParameterId>* Optimizer::Impl::stepper_of(DeviceList& list) const {
    if (options.device && !list) list.emplace(options.device->stepper());
    return list ? &*list : nullptr;
}

void Optimizer::Impl::check_step_counts(std::span<Parameter* const> chosen) {
    // A device counter could overflow close to 2^63. The host then needs the exact counts.
    const auto is_large = [](const Parameter* p) { return p->steps > kMostSteps / 2; };
    if (std::any_of(chosen.begin(), chosen.end(), is_large)) collect_steps();
    for (const auto* p : chosen) {
        if (p->steps < kMostSteps) continue;
        throw InvalidArgument(p->name + " has made " + std::to_string(p->steps) +
                              " steps, the most that can be counted: set_step_count to the true count first");
    }
}

void Optimizer::Impl::collect(DeviceList& list) {
    if (list) list->collect([this](ParameterId id, std::uint64_t count) { add_bad(id, count); });
}

void Optimizer::Impl::step_on_device(CountingStepper<ParameterId>& stepper,
                                     std::span<Parameter* const> chosen, const DeviceNumbers& with) {
    std::vector<ParameterId> ids;
    for (const auto* p : chosen) ids.push_back(static_cast<ParameterId>(p - parameters.data()));
    stepper.step(items, ids, [this](ParameterId id, std::uint64_t count) { add_bad(id, count); }, with);
}

StepReport Optimizer::Impl::step(std::span<Parameter* const> chosen, DeviceList& list, DeviceNumbers with) {
    check_step_counts(chosen);
    auto* const stepper = stepper_of(list);
    const bool must_count = options.nonfinite != NonFinite::kSkipElement;
    StepReport report;
    if (with.found_inf != nullptr &&
        (stepper == nullptr || must_count)) {  // the host steps, or blocks for the count anyway
        report.skipped = is_set(with.found_inf);
        if (report.skipped) return report;
        with.found_inf = nullptr;
    }
    if (with.found_inf != nullptr) count_on_device(chosen);
    fill_items(chosen, with);
    with.steps_done = counters_of(chosen);
    if (must_count) {
        report.bad_elements = stepper != nullptr ? (*stepper)->count_bad_gradients(items, with)
                                                 : count_bad_gradients(items, pool, options.backend);
        if (report.bad_elements != 0) {
            skip(chosen);
            report.skipped = true;
            return report;
        }
    }
    if (stepper != nullptr) {
        step_on_device(*stepper, chosen, with);
    } else {
        report.bad_elements = flashoptim::step(items, pool, options.backend);
    }
    for (auto* p : chosen) {
        if (p->counts_on_device) continue;
        ++p->steps;
        p->has_momentum = true;
    }
    if (report.bad_elements != 0) count_bad(chosen);
    return report;
}

void Optimizer::Impl::count_bad(std::span<Parameter* const> chosen) const {
    for (std::size_t n = 0; n < chosen.size(); ++n) chosen[n]->bad_elements += items[n].bad_elements;
}

void Optimizer::Impl::skip(std::span<Parameter* const> chosen) const {
    if (options.nonfinite != NonFinite::kError) return count_bad(chosen);
    const auto bad =
        std::find_if(items.begin(), items.end(), [](const StepItem& item) { return item.bad_elements != 0; });
    // Made before anything is counted, because making it may fail for want of memory.
    const NonFiniteError error(
        "the gradient of " + chosen[static_cast<std::size_t>(bad - items.begin())]->name + " has " +
        std::to_string(bad->bad_elements) +
        " elements that are NaN, infinite or at least 2^48: nothing was stepped; lower the "
        "learning rate or the loss scale, or choose the policy skip_element");
    count_bad(chosen);
    throw error;  // NOLINT(cert-err09-cpp,cert-err61-cpp,misc-throw-by-value-catch-by-reference)
}

}  // namespace flashoptim
