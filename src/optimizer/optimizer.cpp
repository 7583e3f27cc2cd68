// The public API of the framework-free optimizer: parameter groups, parameters, gradients. step.h has the
// arithmetic.
#include "flashoptim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "core/exact_arithmetic.h"
#include "core/memory_checks.h"
#include "impl.h"
#include "step/float_environment.h"

namespace flashoptim {

Optimizer::Impl::Parameter& Optimizer::Impl::at(ParameterId id) {
    if (id < parameters.size()) return parameters[id];
    throw InvalidArgument("parameter " + std::to_string(id) + " does not exist: there are " +
                          std::to_string(parameters.size()));
}
Hyperparameters& Optimizer::Impl::group_at(GroupId id) {
    if (id < groups.size()) return groups[id];
    throw InvalidArgument("parameter group " + std::to_string(id) + " does not exist: there are " +
                          std::to_string(groups.size()));
}

Hyperparameters Optimizer::Impl::checked(Hyperparameters h, double initial_learning_rate) const {
    if (h.initial_learning_rate == 0.0) h.initial_learning_rate = initial_learning_rate;
    check_hyperparameters(rule, h);
    return h;
}

StoredState Optimizer::Impl::stored_under(const Hyperparameters& h, const Parameter& p,
                                          StateArena& from) const {
    const auto plan = plan_storage(rule, h, options.storage, p.weight.dtype, p.layout, p.name);
    return {plan, p.stored, from, options.device.get()};
}

Optimizer::ParameterId Optimizer::Impl::add_parameter(Parameter p) {
    const ParameterId id = parameters.size();
    const auto range = range_of(p.weight, p.name);
    check_apart_from_all(range, p.name);
    auto arena_after = arena;
    p.stored = stored_under(groups[p.group], p, arena_after);
    if (id == parameters.capacity()) parameters.reserve(std::max<std::size_t>(16, 2 * id));
    weight_ranges.add(range, id);
    // Nothing is thrown from here on.
    parameters.push_back(std::move(p));
    arena = std::move(arena_after);
    items_are_current = false;
    return id;
}

void Optimizer::Impl::set_hyperparameters(GroupId group, const Hyperparameters& changed) {
    struct Change {
        Parameter* parameter;
        StoredState stored;
        bool has_other_momentum;  // the momentum buffer was added or removed
    };
    std::vector<Change> changes;
    auto arena_after = arena;
    for (auto& p : parameters) {
        if (p.group != group) continue;
        auto stored = stored_under(changed, p, arena_after);
        if (stored.plan == p.stored.plan) continue;
        const bool has_other_momentum = stored.plan.codes(0).count != p.stored.plan.codes(0).count;
        changes.push_back({&p, std::move(stored), has_other_momentum});
    }
    if (!changes.empty()) collect_steps();
    // Nothing is thrown from here on.
    for (auto& change : changes) {
        change.parameter->stored = std::move(change.stored);
        if (change.has_other_momentum) change.parameter->has_momentum = false;
    }
    arena = std::move(arena_after);
    groups[group] = changed;
    items_are_current = false;
}

void Optimizer::Impl::check_memory(const TensorView& tensor, const Parameter& p,
                                   const std::string& what) const {
    if (p.layout.numel == 0) return;
    if (tensor.data == nullptr) {
        throw InvalidArgument(what + " has no data: give a pointer to its " + std::to_string(p.layout.numel) +
                              " elements");
    }
    check_alignment(tensor.data, tensor.dtype, what);
    if (options.device) options.device->check_memory(tensor.data, what);
}

void Optimizer::Impl::check_apart_from_weights(const TensorView& gradient, const MemoryRange& range,
                                               const std::string& name) const {
    const auto none = parameters.size();
    const auto other = weight_ranges.find_overlap(range, none, [&](std::size_t id) {
        return has_element_in(range_of(parameters[id].weight, parameters[id].name), gradient);
    });
    if (other == none) return;
    throw InvalidArgument(name + " lies in the memory of the weight " + parameters[other].name +
                          ": give it memory of its own, as a step writes weights while it reads gradients");
}
void Optimizer::Impl::check_apart_from_all(const MemoryRange& weight, const std::string& name) const {
    const auto none = parameters.size();
    const auto other = weight_ranges.find_overlap(weight, none, [](std::size_t) { return true; });
    if (other != none) {
        throw InvalidArgument(name + " overlaps " + parameters[other].name +
                              " in memory: add a shared weight once, with the sum of its gradients");
    }
    const auto read = gradient_ranges.find_overlap(
        weight, none, [&](std::size_t id) { return has_element_in(weight, parameters[id].gradient); });
    if (read == none) return;
    throw InvalidArgument(name + " lies in the memory of the gradient of " + parameters[read].name +
                          ": give that memory of its own, as a step writes weights while it reads gradients");
}

Optimizer::Optimizer(Rule rule, const Hyperparameters& hyperparameters, const OptimizerOptions& options)
    : impl_(std::make_unique<Impl>(rule, options)) {
    add_group(hyperparameters);
}
Optimizer::~Optimizer() = default;
Optimizer::Optimizer(Optimizer&&) noexcept = default;
Optimizer& Optimizer::operator=(Optimizer&&) noexcept = default;

Rule Optimizer::rule() const { return impl_->rule; }
const OptimizerOptions& Optimizer::options() const { return impl_->options; }

Optimizer::GroupId Optimizer::add_group(const Hyperparameters& hyperparameters) {
    impl_->groups.push_back(impl_->checked(hyperparameters, hyperparameters.learning_rate));
    return impl_->groups.size() - 1;
}
std::size_t Optimizer::group_count() const { return impl_->groups.size(); }
const Hyperparameters& Optimizer::hyperparameters(GroupId group) const { return impl_->group_at(group); }

void Optimizer::set_hyperparameters(GroupId group, const Hyperparameters& hyperparameters) {
    const double initial_learning_rate = impl_->group_at(group).initial_learning_rate;
    impl_->set_hyperparameters(group, impl_->checked(hyperparameters, initial_learning_rate));
}
void Optimizer::set_learning_rate(double learning_rate) {
    for (auto changed : impl_->groups) {
        changed.learning_rate = learning_rate;
        check_hyperparameters(impl_->rule, changed);
    }
    for (auto& group : impl_->groups) group.learning_rate = learning_rate;
    impl_->items_are_current = false;
}
void Optimizer::set_learning_rate(GroupId group, double learning_rate) {
    auto changed = impl_->group_at(group);
    changed.learning_rate = learning_rate;
    check_hyperparameters(impl_->rule, changed);
    impl_->group_at(group) = changed;
    impl_->items_are_current = false;
}

Optimizer::ParameterId Optimizer::add_parameter(const TensorView& weight, std::string name, GroupId group,
                                                const std::optional<Shard>& shard) {
    Impl::Parameter p;
    p.name = name.empty() ? "parameter " + std::to_string(impl_->parameters.size()) : std::move(name);
    impl_->group_at(group);
    p.group = group;
    p.weight = weight;
    if (p.weight.strides.empty()) p.weight.strides = row_major_strides(p.weight.shape);
    p.layout = shard ? layout_of(p.weight, *shard, p.name) : layout_of(p.weight, p.name);
    impl_->check_memory(p.weight, p, p.name);
    return impl_->add_parameter(std::move(p));
}
std::size_t Optimizer::parameter_count() const { return impl_->parameters.size(); }
const std::string& Optimizer::name(ParameterId parameter) const { return impl_->at(parameter).name; }
const TensorView& Optimizer::weight(ParameterId parameter) const { return impl_->at(parameter).weight; }
Optimizer::GroupId Optimizer::group_of(ParameterId parameter) const { return impl_->at(parameter).group; }

void Optimizer::set_gradient(ParameterId parameter, const TensorView& gradient) {
    auto& p = impl_->at(parameter);
    auto view = gradient;
    const auto name = "the gradient of " + p.name;
    if (view.strides.empty()) view.strides = row_major_strides(view.shape);
    if (view.shape != p.weight.shape || view.strides.size() != view.shape.size()) {
        throw InvalidArgument(name + " has another shape than its weight: give one of " +
                              std::to_string(p.layout.numel) + " elements in the weight's shape");
    }
    if (!is_floating(view.dtype)) {
        throw InvalidArgument(name + " is " + std::string(name_of(view.dtype)) +
                              ": gradients must be float32, bfloat16 or float16");
    }
    if (view.data == nullptr && p.layout.numel > 0) {
        throw InvalidArgument(name + " has no data: use clear_gradient to take it away");
    }
    const auto range = range_of(view, name);
    impl_->check_apart_from_weights(view, range, name);
    const bool in_order = same_memory_order(view.shape, view.strides, p.layout.strides);
    if (!in_order && impl_->options.device) {
        throw InvalidArgument(name +
                              " lies in another memory order than its weight: on a device bring it into the "
                              "weight's order first");
    }
    if (!p.has_gradient || view.data != p.gradient.data || view.dtype != p.gradient.dtype) {
        impl_->check_memory(view, p, name);
    }
    std::vector<std::byte> ordered;
    const auto bytes = BufferPlan{view.dtype, p.layout.numel}.bytes();
    if (!in_order && p.ordered_gradient.size() != bytes) ordered.resize(bytes);
    if (range != p.gradient_range) impl_->gradient_ranges.add(range, parameter);
    // Nothing is thrown from here on.
    if (range != p.gradient_range) {
        impl_->gradient_ranges.remove(p.gradient_range, parameter);
        p.gradient_range = range;
    }
    if (in_order || !ordered.empty()) p.ordered_gradient = std::move(ordered);
    p.gradient_in_order = in_order;
    p.gradient = std::move(view);
    p.has_gradient = true;  // also for an empty tensor: its step count advances
}
void Optimizer::clear_gradient(ParameterId parameter) {
    auto& p = impl_->at(parameter);
    impl_->gradient_ranges.remove(p.gradient_range, parameter);
    p.gradient_range = {};
    p.gradient = {};
    p.has_gradient = false;
    p.ordered_gradient = {};
}

void Optimizer::set_gradient_factor(double factor) {
    if (!(std::abs(factor) <= static_cast<double>(std::numeric_limits<float>::max())))
        throw InvalidArgument("gradient_factor is not a finite float: check the loss scale and the norm");
    const DefaultFloatEnvironment exact;
    impl_->gradient_factor = static_cast<float>(factor);
}

void Optimizer::set_grad_scale(const float* scale) {
    impl_->numbers.grad_scale = impl_->checked(scale, "the grad scale");
}
void Optimizer::set_found_inf(const float* found_inf) {
    impl_->numbers.found_inf = impl_->checked(found_inf, "found_inf");
}

double Optimizer::grad_norm() { return impl_->grad_norm(); }
const double* Optimizer::clip_grad_norm(double max_norm) {
    if (!(max_norm >= 0.0)) {
        throw InvalidArgument("the maximal norm is " + std::to_string(max_norm) + ": give 0 or more");
    }
    return impl_->clip_grad_norm(max_norm);
}

StepReport Optimizer::step() {
    // The clip coefficient belongs to the current gradients. If this step fails for want of memory, the
    // coefficient is kept for another attempt. Every other outcome clears it.
    const auto drop_clip = [this] { impl_->numbers.clip_coefficient = nullptr; };
    try {
        const auto report = impl_->step(impl_->all_with_gradient(), impl_->all_on_device, impl_->numbers);
        drop_clip();
        return report;
    } catch (const NonFiniteError&) {
        drop_clip();
        throw;
    }
}
StepReport Optimizer::step_parameter(ParameterId parameter) {
    auto* p = &impl_->at(parameter);
    if (!p->has_gradient) {
        throw InvalidArgument(p->name + " has no gradient: call set_gradient before step_parameter");
    }
    auto with = impl_->numbers;
    with.clip_coefficient = nullptr;
    return impl_->step({&p, 1}, p->alone, with);
}

std::int64_t Optimizer::step_count(ParameterId parameter) const {
    const auto& p = impl_->at(parameter);
    impl_->collect_steps();
    return p.steps;
}
void Optimizer::set_step_count(ParameterId parameter, std::int64_t steps) {
    if (steps < 0)
        throw InvalidArgument("step count is " + std::to_string(steps) + ": it must not be negative");
    auto& p = impl_->at(parameter);
    impl_->collect_steps();
    p.steps = steps;
}
std::uint64_t Optimizer::bad_elements(ParameterId parameter) const {
    auto& p = impl_->at(parameter);
    impl_->collect(impl_->all_on_device);
    impl_->collect(p.alone);
    return p.bad_elements;
}

const StoragePlan& Optimizer::storage(ParameterId parameter) const {
    return impl_->at(parameter).stored.plan;
}
const Layout& Optimizer::layout(ParameterId parameter) const { return impl_->at(parameter).layout; }
bool Optimizer::has_momentum(ParameterId parameter) const {
    const auto& p = impl_->at(parameter);
    impl_->collect_steps();
    return p.has_momentum;
}
void Optimizer::set_has_momentum(ParameterId parameter, bool has) {
    auto& p = impl_->at(parameter);
    impl_->collect_steps();
    p.has_momentum = has;
}

}  // namespace flashoptim
