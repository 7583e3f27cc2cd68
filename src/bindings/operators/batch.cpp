// Checks the arguments of a call, tensor by tensor.
#include "batch.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "flashoptim/device.h"
#include "flashoptim/layout.h"
#include "flashoptim/optimizer.h"
#include "flashoptim/system/checked_arithmetic.h"
#include "gpu.h"

namespace flashoptim::operators {

std::vector<Hyperparameters> groups_from(const Tensor& hyperparameters) {
    const auto values = doubles_of(hyperparameters.get(), {"hyperparameters"});
    if (values.size() % kHyperparameterRow != 0)
        refuse("hyperparameters needs rows of " + std::to_string(kHyperparameterRow));
    std::vector<Hyperparameters> groups;
    for (std::size_t at = 0; at < values.size(); at += kHyperparameterRow) {
        groups.push_back(hyperparameters_from(values.subspan(at, kHyperparameterRow)));
    }
    return groups;
}

Batch::Batch(const HandleList& weights, const HandleList& gradients, const Tensor& table,
             const Tensor& hyperparameters)
    : weights_(weights), gradients_(gradients) {
    if (gradients.size() != weights.size()) {
        refuse("there are " + std::to_string(weights.size()) + " weights and " +
               std::to_string(gradients.size()) + " gradients");
    }
    if (weights.size() != 0) device_ = device_of(weights[0]);
    is_on_gpu_ = has_kernels_for(device_);
    if (!is_on_gpu_ && !device_.is_host()) {
        refuse(weights.name(0).text() + " is on " + device_.text() + ", where " + why_not_stepped(device_));
    }
    rows_ = integers_of(table.get(), {"table"});
    if (rows_.size() != weights.size() * kStepRow)
        refuse("table needs a row of " + std::to_string(kStepRow) + " for each weight");
    groups_ = groups_from(hyperparameters);
    rates_.assign(groups_.size(), nullptr);
    checked_.assign(groups_.size(), -1);
    layouts_.reserve(weights.size());  // items point to them, so they must not move
    items.reserve(weights.size());
}

void Batch::set_learning_rates(const Tensor& learning_rates) {
    const auto rates = doubles_of(learning_rates.get(), {"learning_rates"}, device_);
    if (rates.size() != groups_.size()) {
        refuse("learning_rates has " + std::to_string(rates.size()) + " elements: it must have " +
               std::to_string(groups_.size()) + ", one for each row of hyperparameters");
    }
    for (std::size_t n = 0; n < rates.size(); ++n) {
        if (!std::isnan(groups_[n].learning_rate)) continue;
        if (is_on_gpu_) rates_[n] = &rates[n];
        groups_[n].learning_rate = is_on_gpu_ ? 0.0 : rates[n];
    }
}

void Batch::forget_learning_rates() {
    for (auto& group : groups_) group.learning_rate = 0.0;
}

StepItem& Batch::add() {
    const auto n = items.size();
    const auto row = step_row_from(rows_.subspan(n * kStepRow, kStepRow), groups_);
    const auto& group = groups_[row.group];
    if (checked_[row.group] != static_cast<int>(row.rule)) {
        check_hyperparameters(row.rule, group);
        checked_[row.group] = static_cast<int>(row.rule);
    }
    layouts_.push_back(row.layout);
    auto& item = items.emplace_back();
    item.layout = &layouts_.back();
    item.plan = row.plan;
    weight_ = dense_view_of(weights_[n], row.plan.weight_dtype, weights_.name(n), device_);
    check_numel(weight_, row.layout.numel, weights_.name(n));
    item.weight = weight_.data;
    set_gradient(item, n);
    item.rule = row.rule;
    item.hyperparameters = group;
    item.check_gradient = row.check_gradient;
    unfilled_at_ = row.unfilled_at;
    group_ = row.group;
    return item;
}

void Batch::set_step(const HandleList& steps) {
    const auto n = items.size() - 1;
    const auto count = integers_of(steps[n], steps.name(n), device_);
    if (count.size() != 1 || (!is_on_gpu_ && count[0] < 0)) {
        refuse(steps.name(n).text() + " must be one integer that is not negative");
    }
    auto& item = items.back();
    step_counts.push_back(count.data());
    if (is_on_gpu_) {
        item.step = 1;
        item.has_momentum = unfilled_at_ < 0;
        item_values.push_back({count.data(), rates_[group_], unfilled_at_});
    } else {
        if (count[0] == std::numeric_limits<std::int64_t>::max()) {
            refuse(steps.name(n).text() +
                   " is 2^63 - 1, the most steps that can be counted: give a lower count");
        }
        item.step = count[0] + 1;
        item.has_momentum = count[0] > unfilled_at_;
    }
}

void Batch::set_direction(const HandleList& directions) {
    const auto n = items.size() - 1;
    auto& item = items.back();
    const auto direction = view_of(directions[n], directions.name(n), device_);
    if (!direction.lies_as(weight_)) {
        refuse(directions.name(n).text() + ' ' + direction.text() + " does not lie as its weight " +
               weight_.text() + ": make it with torch.empty_like(weight, dtype=...)");
    }
    item.direction_dtype = floating_dtype_of(direction, directions.name(n));
    item.direction = direction.data;
}

std::span<std::int64_t> Batch::counts_of(const Tensor& bad_elements) const {
    const auto counts = integers_of(bad_elements.get(), {"bad_elements"}, device_);
    if (counts.size() != weights_.size()) refuse("bad_elements needs one integer for each weight");
    return counts;
}

void Batch::add_bad_elements(std::span<std::int64_t> to) const {
    for (std::size_t n = 0; n < items.size(); ++n) {
        const auto more = static_cast<std::int64_t>(items[n].bad_elements);
        to[n] = checked_add(to[n], more).value_or(std::numeric_limits<std::int64_t>::max());
    }
}

void Batch::advance_steps() const {
    for (std::size_t n = 0; n < items.size(); ++n) *step_counts[n] = items[n].step;
}

void Batch::set_factors(const GradientFactors& factors) {
    if (!std::isfinite(factors.gradient_factor)) {
        refuse("gradient_factor is not finite: check the loss scale and the norm");
    }
    auto factor = static_cast<float>(factors.gradient_factor);
    const auto& [unused, grad_scale, clip_coefficient] = factors;
    if (is_on_gpu_) {
        if (grad_scale) {
            device_values.grad_scale = float_of(grad_scale->get(), {"grad_scale"}, device_);
        }
        if (clip_coefficient) {
            device_values.clip_coefficient = float_of(clip_coefficient->get(), {"clip_coefficient"}, device_);
        }
        device_values.items = item_values;
    } else {
        const auto read = [](const std::optional<Tensor>& number, const char* name) {
            return number ? static_cast<float>(number_of(number->get(), {name})) : 1.0F;
        };
        const float scale = read(grad_scale, "grad_scale"), clip = read(clip_coefficient, "clip_coefficient");
        factor *= factor_of({&scale, &clip, nullptr, {}});
    }
    for (auto& item : items) item.gradient_factor = factor;
}

void Batch::set_gradient(StepItem& item, std::size_t n) {
    const auto gradient = view_of(gradients_[n], gradients_.name(n), device_, Alignment::kAny);
    item.gradient_dtype = floating_dtype_of(gradient, gradients_.name(n));
    item.gradient = gradient.data;
    if (gradient.is_aligned && gradient.lies_as(weight_)) return;
    if (!std::ranges::equal(gradient.sizes, weight_.sizes)) {
        refuse(gradients_.name(n).text() + " is " + gradient.text() + " and its weight " + weight_.text() +
               ": both must have one shape");
    }
    ordered_.push_back(empty_as(weight_, item.gradient_dtype));
    copy(ordered_.back().get(), gradients_[n]);
    item.gradient = ordered_.back().data_ptr();
}

void* Batch::buffer(std::span<const AtenTensorHandle> tensors, int place) const {
    const auto n = items.size() - 1;
    const auto& plan = items.back().plan.at(place);
    const auto buffer = buffer_name(items.back().rule, place);
    const Name name{buffer.empty() ? "state" : buffer.data(), static_cast<std::int64_t>(n)};
    if (tensors.empty()) {
        if (plan.count == 0) return nullptr;
        refuse("state has no " + std::string(buffer) + ": " + weights_.name(n).text() + " needs " +
               std::to_string(plan.count) + " elements of it");
    }
    // A tensor that stands for a missing buffer may be on any device.
    const auto memory = memory_of(tensors[n], name, plan.count == 0 ? device_of(tensors[n]) : device_);
    check_numel(memory, plan.count, name);
    if (plan.count == 0) return nullptr;
    check_dtype(memory, plan.dtype, name);
    if (is_scales_place(place)) {
        if (!memory.is_contiguous) refuse(name.text() + " is not contiguous: give a contiguous copy");
    } else if (!memory.is_contiguous || !weight_.is_contiguous) {
        check_order(tensors[n], name);
    }
    return memory.data;
}

/// Refuses a buffer whose elements are not in the weight's memory order. The order of a one-dimensional
/// buffer cannot be checked.
void Batch::check_order(AtenTensorHandle tensor, Name name) const {
    const auto view = view_of(tensor, name, device_);
    if ((view.is_contiguous && view.sizes.size() == 1) || view.lies_as(weight_)) return;
    refuse(name.text() + ' ' + view.text() + " does not lie as its weight " + weight_.text() +
           ": decode and encode it again where the weight's strides have changed");
}

StateLists::StateLists(const HandleList& list, std::span<const std::int64_t> places, std::size_t weights) {
    if (list.size() != places.size() * weights) {
        refuse("state has " + std::to_string(list.size()) + " tensors for " + std::to_string(places.size()) +
               " places of " + std::to_string(weights) +
               " weights: give one for each, empty where there is none");
    }
    std::size_t begin = 0;
    for (const auto place : places) {
        if (place < 0 || place >= kMaxBuffers || !of(static_cast<int>(place)).empty()) {
            refuse("places has " + std::to_string(place) + ": it must be 0 to " +
                   std::to_string(kMaxBuffers - 1) + ", each once");
        }
        lists_[static_cast<std::size_t>(place)] = list.handles().subspan(begin, weights);
        begin += weights;
    }
}

}  // namespace flashoptim::operators
