// Batch: turns the tensors and tables of a step, a count or a norm into checked items of the core.
// fused_step.cpp and two_passes.cpp use the items.
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

/// The factor of all gradients of a call, as fp32: gradient_factor * (1 / grad_scale * clip_coefficient).
struct GradientFactors {
    double gradient_factor = 1.0;
    const std::optional<Tensor>& grad_scale;
    const std::optional<Tensor>& clip_coefficient;
};

class Batch {
public:
    /// All tensors must be on the device of the first weight.
    Batch(const HandleList& weights, const HandleList& gradients, const Tensor& table,
          const Tensor& hyperparameters);
    /// Sets the learning rates, one for each row of hyperparameters, that are NaN in that row. Call it before
    /// add().
    void set_learning_rates(const Tensor& learning_rates);
    /// For calls that need no learning rates. Call it before add().
    void forget_learning_rates();

    /// Adds the next item, without its state and with the factor 1.
    StepItem& add();
    /// The memory of the last item's state buffer at a place; null if its plan has none. `tensors` has one
    /// tensor for each weight.
    [[nodiscard]] void* buffer(std::span<const AtenTensorHandle> tensors, int place) const;
    /// Sets the address of the last item's step count and reads it.
    void set_step(const HandleList& steps);
    /// Sets the last item's direction: float32 or bfloat16, in the weight's memory order.
    void set_direction(const HandleList& directions);
    /// The counts of bad elements in the caller's tensor, one for each weight.
    [[nodiscard]] std::span<std::int64_t> counts_of(const Tensor& bad_elements) const;
    /// After a call on the CPU: adds its counts of bad elements to the caller's.
    void add_bad_elements(std::span<std::int64_t> to) const;
    /// After a call on the CPU: advances the caller's step counts.
    void advance_steps() const;
    /// Sets the factor of all items; call it after the last add(). On a GPU the two tensors are read when the
    /// step runs.
    void set_factors(const GradientFactors& factors);

    [[nodiscard]] TensorDevice device() const { return device_; }
    /// Whether the CUDA kernels step the tensors.
    [[nodiscard]] bool is_on_gpu() const { return is_on_gpu_; }

    std::vector<StepItem> items;
    std::vector<std::int64_t*> step_counts;     // one for each item
    std::vector<cuda::ItemValues> item_values;  // one for each item on a GPU
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
    std::vector<const double*> rates_;  // by group: address of its learning rate on a GPU, or null
    std::vector<int> checked_;          // by group: the rule for which its hyperparameters were checked
    std::vector<Layout> layouts_;
    std::vector<Tensor> ordered_;  // copies of gradients in the weights' memory order
};

/// The rows of a tensor of hyperparameters.
std::vector<Hyperparameters> groups_from(const Tensor& hyperparameters);

/// The state of a call: one list of tensors. It has the tensors of all weights for one place, then those for
/// the next place.
class StateLists {
public:
    /// `places` are the places of the list, in order. Refuses an invalid or repeated place and a list of
    /// another length.
    StateLists(const HandleList& list, std::span<const std::int64_t> places, std::size_t weights);
    /// The tensors at a place, one for each weight; empty if the list does not have the place.
    [[nodiscard]] std::span<const AtenTensorHandle> of(int place) const {
        return lists_[static_cast<std::size_t>(place)];
    }

private:
    std::array<std::span<const AtenTensorHandle>, kMaxBuffers> lists_;
};

}  // namespace flashoptim::operators
