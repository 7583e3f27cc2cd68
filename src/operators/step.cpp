// The step of a list of tensors: everything is checked, gradients are brought into their weight's order, the core is called once.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>

#include "flashoptim/layout.h"
#include "flashoptim/optimizer.h"
#include "kernels.h"
#include "tables.h"

namespace flashoptim::operators {

namespace {

/// The process's threads: as many as torch has, or as set_threads says. A call in progress keeps the pool that it began with.
class SharedPool {
public:
    std::shared_ptr<ThreadPool> get() {
        const int wanted = fixed_ > 0 ? fixed_.load() : static_cast<int>(torch::stable::get_num_threads());
        const std::lock_guard lock(mutex_);
        if (pool_ == nullptr || pool_->threads() != wanted) pool_ = std::make_shared<ThreadPool>(wanted);
        return pool_;
    }
    void fix(int threads) { fixed_ = threads; }

private:
    std::atomic<int> fixed_ = 0;
    std::mutex mutex_;
    std::shared_ptr<ThreadPool> pool_;
};
SharedPool& shared_pool() {
    static SharedPool pool;
    return pool;
}

std::atomic<Backend>& chosen_backend() {
    static std::atomic<Backend> backend = Backend::kAutomatic;
    return backend;
}

float factor_of(double gradient_factor, const std::optional<Tensor>& grad_scale) {
    if (!std::isfinite(gradient_factor)) {
        refuse("gradient_factor is not finite: check the loss scale and the norm");
    }
    return static_cast<float>(grad_scale ? gradient_factor / number_of(grad_scale->get(), {"grad_scale"})
                                         : gradient_factor);
}

/// The tensors and tables of a call, checked, as the core's items.
class Batch {
public:
    Batch(const TensorList& weights, const TensorList& gradients, const Tensor& table,
          const Tensor& hyperparameters, float gradient_factor)
        : weights_(weights), gradients_(gradients), factor_(gradient_factor) {
        if (gradients.size() != weights.size()) {
            refuse("there are " + std::to_string(weights.size()) + " weights and " +
                   std::to_string(gradients.size()) + " gradients");
        }
        rows_ = integers_of(table.get(), {"table"});
        if (rows_.size() != weights.size() * kStepRow) refuse("table needs a row of 24 for each weight");
        const auto values = doubles_of(hyperparameters.get(), {"hyperparameters"});
        if (values.size() % kHyperparameterRow != 0) refuse("hyperparameters needs rows of 11");
        for (std::size_t at = 0; at < values.size(); at += kHyperparameterRow) {
            groups_.push_back(hyperparameters_from(values.subspan(at, kHyperparameterRow)));
        }
        layouts_.reserve(weights.size());  // items point to them
        items.reserve(weights.size());
        checked_.assign(groups_.size(), -1);
    }

    /// The next item, without its state.
    StepItem& add() {
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
        weight_ = dense_view_of(weights_[n], row.plan.weight_dtype, weights_.name(n));
        check_numel(weight_, row.layout.numel, weights_.name(n));
        item.weight = weight_.data;
        set_gradient(item, n);
        item.gradient_factor = factor_;
        item.rule = row.rule;
        item.hyperparameters = group;
        item.has_momentum = row.has_momentum;
        item.check_gradient = row.check_gradient;
        return item;
    }

    /// The memory of the last item's state buffer: elements in the weight's order, or scales. A list may be empty where no
    /// tensor of the call has such a buffer.
    void* elements(const TensorList& list, const BufferPlan& plan) const { return buffer(list, plan, true); }
    void* scales(const TensorList& list, const BufferPlan& plan) const { return buffer(list, plan, false); }

    std::vector<StepItem> items;

private:
    void set_gradient(StepItem& item, std::size_t n) {
        const auto gradient = view_of(gradients_[n], gradients_.name(n));
        item.gradient_dtype = floating_dtype_of(gradient, gradients_.name(n));
        item.gradient = gradient.data;
        if (gradient.lies_as(weight_)) return;
        if (!std::ranges::equal(gradient.sizes, weight_.sizes)) {
            refuse(gradients_.name(n).text() + " is " + gradient.text() + " and its weight " +
                   weight_.text() + ": both must have one shape");
        }
        ordered_.push_back(empty_as(weight_, item.gradient_dtype));
        copy(ordered_.back().get(), gradients_[n]);
        item.gradient = ordered_.back().data_ptr();
    }

    [[nodiscard]] void* buffer(const TensorList& list, const BufferPlan& plan,
                               bool in_order_of_weight) const {
        const auto n = items.size() - 1;
        const auto name = list.name(n);
        if (list.size() == 0) {
            if (plan.count == 0) return nullptr;
            refuse(std::string(list.name()) + " is empty: " + weights_.name(n).text() + " needs " +
                   std::to_string(plan.count) + " elements of it");
        }
        const auto memory = memory_of(list[n], name);
        check_numel(memory, plan.count, name);
        if (plan.count == 0) return nullptr;
        check_dtype(memory, plan.dtype, name);
        if (!in_order_of_weight) {
            if (!memory.is_contiguous) refuse(name.text() + " is not contiguous: give a contiguous copy");
        } else if (!memory.is_contiguous || !weight_.is_contiguous) {
            check_order(list[n], name);
        }
        return memory.data;
    }

    /// Refuses a buffer whose elements are in another order than the weight's; one of one dimension is taken at its word.
    void check_order(AtenTensorHandle tensor, Name name) const {
        const auto view = view_of(tensor, name);
        if ((view.is_contiguous && view.sizes.size() == 1) || view.lies_as(weight_)) return;
        refuse(name.text() + ' ' + view.text() + " does not lie as its weight " + weight_.text() +
               ": decode and encode it again where the weight's strides have changed");
    }

    const TensorList& weights_;
    const TensorList& gradients_;
    const float factor_;
    Row rows_;
    View weight_;  // of the last item
    std::vector<Hyperparameters> groups_;
    std::vector<int> checked_;  // by group: the rule that its hyperparameters were checked for
    std::vector<Layout> layouts_;
    std::vector<Tensor> ordered_;  // copies of gradients that lay in another order
};

void check_count(const TensorList& list, std::size_t wanted) {
    if (list.size() != 0 && list.size() != wanted) {
        refuse(std::string(list.name()) + " has " + std::to_string(list.size()) + " tensors for " +
               std::to_string(wanted) + " weights: give one for each, empty where there is none");
    }
}

/// The step counts before this step.
std::vector<std::int64_t*> step_counts(const TensorList& steps) {
    std::vector<std::int64_t*> counts;
    counts.reserve(steps.size());
    for (std::size_t n = 0; n < steps.size(); ++n) {
        const auto values = integers_of(steps[n], steps.name(n));
        if (values.size() != 1 || values[0] < 0) {
            refuse(steps.name(n).text() + " must be one integer that is not negative");
        }
        counts.push_back(values.data());
    }
    return counts;
}

/// What counting and norms need: no moments, the same effective gradient.
void forget_moments(StepItem& item) {
    item.rule = item.rule == Rule::kSGD || item.rule == Rule::kAdam ? Rule::kSGD : Rule::kSGDW;
    item.hyperparameters.momentum = 0.0;
    item.plan.moments = MomentStorage::kFloat32;
    item.plan.first = item.plan.first_scales = item.plan.second = item.plan.second_scales = {};
}

}  // namespace

void step(ListArgument weight_list, ListArgument gradient_list, ListArgument correction_list,
          ListArgument first_list, ListArgument first_scale_list, ListArgument second_list,
          ListArgument second_scale_list, ListArgument step_list, const Tensor& bad_elements,
          const Tensor& table, const Tensor& hyperparameters, const std::optional<Tensor>& grad_scale,
          const std::optional<Tensor>& found_inf, double gradient_factor, std::int64_t nonfinite) {
    const TensorLists lists(TensorList(weight_list, "weights"), TensorList(gradient_list, "gradients"),
                            TensorList(step_list, "steps"), TensorList(correction_list, "corrections"),
                            TensorList(first_list, "first"), TensorList(first_scale_list, "first_scales"),
                            TensorList(second_list, "second"),
                            TensorList(second_scale_list, "second_scales"));
    const auto& [weights, gradients, steps, corrections, first, first_scales, second, second_scales] =
        lists.all;
    if (found_inf && number_of(found_inf->get(), {"found_inf"}) != 0.0) return;
    const auto count = weights.size();
    if (nonfinite != 0 && nonfinite != 1) {
        refuse("nonfinite is " + std::to_string(nonfinite) + ": it must be 0 or 1");
    }
    for (const auto* list : {&corrections, &first, &first_scales, &second, &second_scales}) {
        check_count(*list, count);
    }
    if (steps.size() != count) refuse("steps needs one integer for each weight");
    const auto bad = integers_of(bad_elements.get(), {"bad_elements"});
    if (bad.size() != count) refuse("bad_elements needs one integer for each weight");

    const auto counts = step_counts(steps);

    Batch batch(weights, gradients, table, hyperparameters, factor_of(gradient_factor, grad_scale));
    for (std::size_t n = 0; n < count; ++n) {
        auto& item = batch.add();
        const auto& plan = item.plan;
        item.state = {batch.elements(corrections, plan.correction), batch.elements(first, plan.first),
                      batch.scales(first_scales, plan.first_scales), batch.elements(second, plan.second),
                      batch.scales(second_scales, plan.second_scales)};
        item.step = *counts[n] + 1;
    }
    const auto pool = shared_pool().get();
    const auto add_bad = [&] {
        for (std::size_t n = 0; n < count; ++n) {
            bad[n] += static_cast<std::int64_t>(batch.items[n].bad_elements);
        }
    };
    if (nonfinite == 1 && count_bad_gradients(batch.items, *pool) != 0) return add_bad();
    flashoptim::step(batch.items, *pool, chosen_backend());
    add_bad();
    for (std::size_t n = 0; n < count; ++n) *counts[n] = batch.items[n].step;
}

Tensor count_bad(ListArgument weight_list, ListArgument gradient_list, ListArgument correction_list,
                 const Tensor& table, const Tensor& hyperparameters, const std::optional<Tensor>& grad_scale,
                 double gradient_factor) {
    const TensorLists lists(TensorList(weight_list, "weights"), TensorList(gradient_list, "gradients"),
                            TensorList(correction_list, "corrections"));
    const auto& [weights, gradients, corrections] = lists.all;
    check_count(corrections, weights.size());
    Batch batch(weights, gradients, table, hyperparameters, factor_of(gradient_factor, grad_scale));
    for (std::size_t n = 0; n < weights.size(); ++n) {
        auto& item = batch.add();
        forget_moments(item);
        if (corrections.size() != 0) {
            item.state.correction = batch.elements(corrections, item.plan.correction);
        } else {
            item.plan.master_weight_bits = 0;
            item.plan.correction = {};
        }
    }
    count_bad_gradients(batch.items, *shared_pool().get());
    auto counts = make_zeros(static_cast<std::int64_t>(weights.size()));
    auto* to = static_cast<std::int64_t*>(counts.data_ptr());
    for (const auto& item : batch.items) *to++ = static_cast<std::int64_t>(item.bad_elements);
    return counts;
}

Tensor grad_norm(ListArgument weight_list, ListArgument gradient_list, const Tensor& table,
                 const Tensor& hyperparameters, double gradient_factor) {
    const TensorLists lists(TensorList(weight_list, "weights"), TensorList(gradient_list, "gradients"));
    const auto& [weights, gradients] = lists.all;
    Batch batch(weights, gradients, table, hyperparameters, factor_of(gradient_factor, std::nullopt));
    for (std::size_t n = 0; n < weights.size(); ++n) batch.add();
    return make_number(flashoptim::grad_norm(batch.items, *shared_pool().get()));
}

void set_threads(std::int64_t threads) {
    if (threads < 0 || threads > 4096) refuse("threads is " + std::to_string(threads) + ": give 0 to 4096");
    shared_pool().fix(static_cast<int>(threads));
}

std::int64_t backend() { return static_cast<std::int64_t>(chosen_backend().load()); }
void set_backend(std::int64_t value) {
    const auto wanted = static_cast<Backend>(value);
    const auto available = available_backends();
    const bool is_known = value == 0 || (static_cast<std::int64_t>(wanted) == value &&
                                         std::ranges::find(available, wanted) != available.end());
    if (!is_known) {
        std::string known = "0 (automatic)";
        for (const auto known_backend : available) {
            known += ", " + std::to_string(static_cast<int>(known_backend)) + " (" +
                     std::string(name_of(known_backend)) + ")";
        }
        refuse("backend " + std::to_string(value) + " is not one of this processor: " + known);
    }
    chosen_backend() = wanted;
}

}  // namespace flashoptim::operators
