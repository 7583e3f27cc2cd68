// The tensors and tables of a call of a step, a count or a norm, checked, as the core's items. What is done
// with them stands in fused_step.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "flashoptim/cuda.h"
#include "flashoptim/step.h"
#include "tables.h"
#include "tensors.h"

namespace flashoptim::operators {

/// What the gradients of a call are multiplied by, as fp32: gradient_factor * (1 /
/// grad_scale * clip_coefficient).
struct GradientFactors {
    double gradient_factor = 1.0;
    const std::optional<Tensor>& grad_scale;
    const std::optional<Tensor>& clip_coefficient;
};

class Batch {
public:
    /// All tensors lie where the first weight does.
    Batch(const HandleList& weights, const HandleList& gradients, const Tensor& table,
          const Tensor& hyperparameters);
    /// Before the first item: learning rates, one for each row of hyperparameters, take the place
    /// of those that are NaN there.
    void set_learning_rates(const Tensor& learning_rates);
    /// The same for what needs none.
    void forget_learning_rates();

    /// The next item, without its state. Its factor is 1.
    StepItem& add();
    /// The memory of the last item's state buffer at a place; null if its plan has none.
    /// `tensors` are those of all items.
    [[nodiscard]] void* buffer(std::span<const AtenTensorHandle> tensors, int place) const;
    /// Where the step count of the last item lies, a step row's one.
    void set_step(const HandleList& steps);
    /// Where the last item's direction lies: float32 or bfloat16, in the weight's memory order.
    void set_direction(const HandleList& directions);
    /// The caller's counts of bad elements, one for each weight.
    [[nodiscard]] std::span<std::int64_t> counts_of(const Tensor& bad_elements) const;
    /// After a call on the CPU: what it counted, added to the caller's counts.
    void add_bad_elements(std::span<std::int64_t> to) const;
    /// The same: step counts become those of the step that was made.
    void advance_steps() const;
    /// Once all items are there. On a GPU the two tensors are read when the step runs.
    void set_factors(const GradientFactors& factors);

    [[nodiscard]] TensorDevice device() const { return device_; }
    /// Whether the CUDA kernels step these tensors.
    [[nodiscard]] bool is_on_gpu() const { return is_on_gpu_; }

    std::vector<StepItem> items;
    std::vector<std::int64_t*> step_counts;     // of each item
    std::vector<cuda::ItemValues> item_values;  // of each item, where they are on a GPU
    cuda::DeviceValues device_values;

private:
    void set_gradient(StepItem& item, std::size_t n);
    void check_order(AtenTensorHandle tensor, Name name) const;

    const HandleList& weights_;
    const HandleList& gradients_;
    TensorDevice device_;
    bool is_on_gpu_ = false;
    Row rows_;
    View weight_;                    // of the last item
    std::int64_t unfilled_at_ = -1;  // of the last item
    std::size_t group_ = 0;          // of the last item
    std::vector<Hyperparameters> groups_;
    std::vector<const double*> rates_;  // by group: where its learning rate lies on a GPU, or null
    std::vector<int> checked_;          // by group: the rule that its hyperparameters were checked for
    std::vector<Layout> layouts_;
    std::vector<Tensor> ordered_;  // copies of gradients that lay in another order
};

/// The rows of a tensor of hyperparameters.
std::vector<Hyperparameters> groups_from(const Tensor& hyperparameters);

/// The state of a call: one list of tensors, with those of all weights for one
/// place behind those for another.
class StateLists {
public:
    /// `places` are those that the list has, in its order. Refuses a place that is none or is there twice,
    /// and a list of another length.
    StateLists(const HandleList& list, std::span<const std::int64_t> places, std::size_t weights);
    /// The tensors at a place, one for each weight; empty where the list has none.
    [[nodiscard]] std::span<const AtenTensorHandle> of(int place) const {
        return lists_[static_cast<std::size_t>(place)];
    }

private:
    std::array<std::span<const AtenTensorHandle>, kMaxBuffers> lists_;
};

}  // namespace flashoptim::operators
