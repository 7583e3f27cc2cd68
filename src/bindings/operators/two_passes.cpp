// A step in two passes, on the CPU. batch.cpp checks the arguments.
#include "batch.h"
#include "execution.h"
#include "operators.h"

namespace flashoptim::operators {

namespace {

/// Columns of the tensor of scalars that update_moments() returns and apply_update() takes.
constexpr std::size_t kScalars = 2;

void refuse_on_gpu(const Batch& batch) {
    if (!batch.is_on_gpu()) return;
    refuse("weights[0] is on " + batch.device().text() +
           ", where there is no step in two passes: keep weights and states on the CPU, or call step_");
}

}  // namespace

Tensor update_moments(ListArgument direction_list, ListArgument weight_list, ListArgument gradient_list,
                      ListArgument state_list, std::vector<std::int64_t> places, ListArgument step_list,
                      const Tensor& bad_elements, const Tensor& table, const Tensor& hyperparameters,
                      const std::optional<Tensor>& grad_scale, double gradient_factor) {
    const TensorLists lists(NamedList{direction_list, "directions"}, NamedList{weight_list, "weights"},
                            NamedList{gradient_list, "gradients"}, NamedList{state_list, "state"},
                            NamedList{step_list, "steps"});
    const auto& [directions, weights, gradients, state, steps] = lists.all;
    const auto count = weights.size();
    const StateLists buffers(state, places, count);
    if (steps.size() != count) refuse("steps needs one integer for each weight");
    if (directions.size() != count) refuse("directions needs one tensor for each weight");

    Batch batch(weights, gradients, table, hyperparameters);
    refuse_on_gpu(batch);
    const auto bad = batch.counts_of(bad_elements);
    for (std::size_t n = 0; n < count; ++n) {
        auto& item = batch.add();
        for (int place = 0; place < kMaxBuffers; ++place) {
            item.state.at(place) = batch.buffer(buffers.of(place), place);
        }
        batch.set_step(steps);
        batch.set_direction(directions);
    }
    const std::optional<Tensor> none;
    batch.set_factors({gradient_factor, grad_scale, none});
    auto scalars = make_doubles(static_cast<std::int64_t>(count), kScalars);
    flashoptim::update_moments(batch.items, *current_pool(), current_backend());
    batch.add_bad_elements(bad);
    batch.advance_steps();
    auto* to = static_cast<double*>(scalars.data_ptr());
    for (const auto& item : batch.items) {
        *to++ = static_cast<double>(item.update.learning_rate);
        *to++ = static_cast<double>(item.update.weight_factor);
    }
    return scalars;
}

void apply_update(ListArgument weight_list, ListArgument correction_list, ListArgument direction_list,
                  ListArgument step_list, const Tensor& bad_elements, const Tensor& table,
                  const Tensor& hyperparameters, const Tensor& scalars) {
    const TensorLists lists(NamedList{weight_list, "weights"}, NamedList{correction_list, "corrections"},
                            NamedList{direction_list, "directions"}, NamedList{step_list, "steps"});
    const auto& [weights, corrections, directions, steps] = lists.all;
    const auto count = weights.size();
    const std::vector<std::int64_t> places(corrections.size() != 0 ? 1 : 0, kCorrectionPlace);
    const StateLists buffers(corrections, places, count);
    if (steps.size() != count) refuse("steps needs one integer for each weight");
    const auto values = doubles_of(scalars.get(), {"scalars"});
    if (values.size() != count * kScalars) {
        refuse("scalars has " + std::to_string(values.size()) +
               " elements: it must have 2 for each weight, as update_moments_ returns them");
    }

    // Directions are passed as gradients, so they may have any strides.
    Batch batch(weights, directions, table, hyperparameters);
    refuse_on_gpu(batch);
    batch.forget_learning_rates();
    const auto bad = batch.counts_of(bad_elements);
    for (std::size_t n = 0; n < count; ++n) {
        auto& item = batch.add();
        item.state.at(kCorrectionPlace) = batch.buffer(buffers.of(kCorrectionPlace), kCorrectionPlace);
        batch.set_step(steps);
        item.step -= 1;
        if (item.step == 0) {
            refuse(steps.name(n).text() +
                   " is 0: the second pass takes the count that the first has advanced");
        }
        item.direction = const_cast<void*>(item.gradient);  // NOLINT: apply_update() only reads it
        item.direction_dtype = item.gradient_dtype;
        item.update = {static_cast<float>(values[n * kScalars]),
                       static_cast<float>(values[n * kScalars + 1])};
    }
    flashoptim::apply_update(batch.items, *current_pool(), current_backend());
    batch.add_bad_elements(bad);
}

}  // namespace flashoptim::operators
