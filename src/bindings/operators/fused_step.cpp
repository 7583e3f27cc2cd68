// The step of a list of tensors, the count of its bad gradients and their norm, on the CPU or a GPU. Each is
// one call of the core. batch.cpp checks the arguments.
#include <torch/csrc/stable/ops.h>

#include "batch.h"
#include "execution.h"
#include "flashoptim/optimizer.h"
#include "gpu.h"
#include "operators.h"

namespace flashoptim::operators {

namespace {

/// Replaces the rule by one without moments and with the same effective gradient, for counts and norms.
void forget_moments(StepItem& item) {
    item.rule = traits_of(item.rule).decay == Decay::kCoupled ? Rule::kSGD : Rule::kSGDW;
    item.hyperparameters.momentum = 0.0;
    item.plan.moments = MomentStorage::kFloat32;
    for (int place = kCorrectionPlace + 1; place < kMaxBuffers; ++place) item.plan.at(place) = {};
}

void forget_correction(StepItem& item) {
    item.plan.master_weight_bits = 0;
    item.plan.at(kCorrectionPlace) = {};
}

/// Makes a step on the CPU. The step counts advance unless the step is skipped.
void step_on_host(Batch& batch, const std::optional<Tensor>& found_inf, std::span<std::int64_t> bad,
                  bool stops_at_bad_gradients) {
    if (found_inf && number_of(found_inf->get(), {"found_inf"}) != 0.0) return;
    const auto pool = current_pool();
    const bool stops =
        stops_at_bad_gradients && count_bad_gradients(batch.items, *pool, current_backend()) != 0;
    if (!stops) flashoptim::step(batch.items, *pool, current_backend());
    batch.add_bad_elements(bad);
    if (!stops) batch.advance_steps();
}

/// Enqueues a step on a GPU and does not block.
void enqueue_step(std::int64_t plan, Batch& batch, const std::optional<Tensor>& found_inf,
                  std::span<std::int64_t> bad, bool stops_at_bad_gradients) {
    auto values = batch.device_values;
    if (found_inf) values.found_inf = float_of(found_inf->get(), {"found_inf"}, batch.device());
    values.bad_elements = reinterpret_cast<std::uint64_t*>(bad.data());
    gpu_step(plan, batch.device(), batch.items,
             {stops_at_bad_gradients ? NonFinite::kSkipStep : NonFinite::kSkipElement, values});
}

}  // namespace

void step(ListArgument weight_list, ListArgument gradient_list, ListArgument state_list,
          std::vector<std::int64_t> places, ListArgument step_list, const Tensor& bad_elements,
          const Tensor& table, const Tensor& hyperparameters, const std::optional<Tensor>& grad_scale,
          const std::optional<Tensor>& found_inf, double gradient_factor, std::int64_t nonfinite,
          const std::optional<Tensor>& clip_coefficient, const std::optional<Tensor>& learning_rates,
          std::int64_t plan) {
    const TensorLists lists(NamedList{weight_list, "weights"}, NamedList{gradient_list, "gradients"},
                            NamedList{state_list, "state"}, NamedList{step_list, "steps"});
    const auto& [weights, gradients, state, steps] = lists.all;
    const auto count = weights.size();
    if (nonfinite != 0 && nonfinite != 1) {
        refuse("nonfinite is " + std::to_string(nonfinite) + ": it must be 0 or 1");
    }
    const StateLists buffers(state, places, count);
    if (steps.size() != count) refuse("steps needs one integer for each weight");

    Batch batch(weights, gradients, table, hyperparameters);
    if (learning_rates) batch.set_learning_rates(*learning_rates);
    const auto bad = batch.counts_of(bad_elements);
    for (std::size_t n = 0; n < count; ++n) {
        auto& item = batch.add();
        for (int place = 0; place < kMaxBuffers; ++place) {
            item.state.at(place) = batch.buffer(buffers.of(place), place);
        }
        batch.set_step(steps);
    }
    batch.set_factors({gradient_factor, grad_scale, clip_coefficient});
    if (batch.is_on_gpu()) {
        enqueue_step(plan, batch, found_inf, bad, nonfinite == 1);
    } else {
        step_on_host(batch, found_inf, bad, nonfinite == 1);
    }
}

Tensor count_bad(ListArgument weight_list, ListArgument gradient_list, ListArgument correction_list,
                 const Tensor& table, const Tensor& hyperparameters, const std::optional<Tensor>& grad_scale,
                 double gradient_factor, const std::optional<Tensor>& clip_coefficient, std::int64_t plan) {
    const TensorLists lists(NamedList{weight_list, "weights"}, NamedList{gradient_list, "gradients"},
                            NamedList{correction_list, "corrections"});
    const auto& [weights, gradients, corrections] = lists.all;
    const std::vector<std::int64_t> places(corrections.size() != 0 ? 1 : 0, kCorrectionPlace);
    const StateLists buffers(corrections, places, weights.size());
    Batch batch(weights, gradients, table, hyperparameters);
    batch.forget_learning_rates();
    for (std::size_t n = 0; n < weights.size(); ++n) {
        auto& item = batch.add();
        forget_moments(item);
        if (corrections.size() != 0) {
            item.state.at(kCorrectionPlace) = batch.buffer(buffers.of(kCorrectionPlace), kCorrectionPlace);
        } else {
            forget_correction(item);
        }
    }
    batch.set_factors({gradient_factor, grad_scale, clip_coefficient});
    auto counts = make_zeros(static_cast<std::int64_t>(weights.size()), batch.device());
    if (batch.is_on_gpu()) {
        auto values = batch.device_values;
        values.bad_elements = static_cast<std::uint64_t*>(counts.data_ptr());
        gpu_count_bad(plan, batch.device(), batch.items, values);
    } else {
        count_bad_gradients(batch.items, *current_pool(), current_backend());
        auto* to = static_cast<std::int64_t*>(counts.data_ptr());
        for (const auto& item : batch.items) *to++ = static_cast<std::int64_t>(item.bad_elements);
    }
    return counts;
}

Tensor grad_norm(ListArgument weight_list, ListArgument gradient_list, const Tensor& table,
                 const Tensor& hyperparameters, double gradient_factor, std::int64_t plan) {
    const TensorLists lists(NamedList{weight_list, "weights"}, NamedList{gradient_list, "gradients"});
    const auto& [weights, gradients] = lists.all;
    Batch batch(weights, gradients, table, hyperparameters);
    batch.forget_learning_rates();
    for (std::size_t n = 0; n < weights.size(); ++n) {
        auto& item = batch.add();
        forget_moments(item);
        forget_correction(item);
    }
    const std::optional<Tensor> none;
    batch.set_factors({gradient_factor, none, none});
    if (!batch.is_on_gpu()) {
        return make_number(flashoptim::grad_norm(batch.items, *current_pool(), current_backend()));
    }
    auto norm = empty_number(batch.device());
    gpu_grad_norm(plan, batch.device(), batch.items, batch.device_values,
                  static_cast<double*>(norm.data_ptr()));
    return norm;
}

void check_groups(const Tensor& hyperparameters, std::int64_t rule) {
    for (const auto& group : groups_from(hyperparameters)) {
        check_hyperparameters(rule_from(rule), group);
    }
}

}  // namespace flashoptim::operators
