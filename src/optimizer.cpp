// The framework-free optimizer: parameter groups, step counts, policies. The arithmetic is behind step.h.
#include "flashoptim/optimizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>

#include "exact_arithmetic.h"
#include "flashoptim/quantize.h"
#include "state_memory.h"
#include "step/float_environment.h"

namespace flashoptim {

namespace {

using DeviceList = std::optional<CountingStepper<Optimizer::ParameterId>>;

/// What the host may read: memory of its own, or a copy of a device's.
struct HostBytes {
    std::span<std::byte> bytes;
    std::shared_ptr<std::byte[]> copy;
};

struct Parameter {
    std::string name;
    TensorView weight;
    Optimizer::GroupId group = 0;
    Layout layout;
    StoragePlan plan;
    StateMemory correction, first, first_scales, second, second_scales;
    TensorView gradient;                      // data null where none is set
    bool gradient_in_order = false;           // whether it lies as the weight does
    std::vector<std::byte> ordered_gradient;  // otherwise a copy that does
    std::int64_t steps = 0;
    bool has_momentum = false;
    std::uint64_t bad_elements = 0;
    DeviceList alone;  // of step_parameter
};

constexpr const char* kWeightName = "weight";

std::span<const std::uint16_t> scales_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const std::uint16_t*>(bytes.data()), bytes.size() / sizeof(std::uint16_t)};
}

bool overlaps(const Parameter& a, const Parameter& b) {
    const auto begin = [](const Parameter& p) { return static_cast<const std::byte*>(p.weight.data); };
    const auto end = [&](const Parameter& p) {
        return begin(p) + static_cast<std::size_t>(p.layout.numel) * size_of(p.weight.dtype);
    };
    return a.layout.numel > 0 && b.layout.numel > 0 && begin(a) < end(b) && begin(b) < end(a);
}

}  // namespace

struct Optimizer::Impl {
    Impl(Rule rule_, const OptimizerOptions& options_)
        : rule(rule_), options(options_), pool(options_.threads) {}

    Parameter& at(ParameterId id) {
        if (id < parameters.size()) return parameters[id];
        throw InvalidArgument("parameter " + std::to_string(id) + " does not exist: there are " +
                              std::to_string(parameters.size()));
    }
    Hyperparameters& group_at(GroupId id) {
        if (id < groups.size()) return groups[id];
        throw InvalidArgument("parameter group " + std::to_string(id) + " does not exist: there are " +
                              std::to_string(groups.size()));
    }

    /// Hyperparameters that may be used; where the first learning rate is not told it is `initial_learning_rate`.
    [[nodiscard]] Hyperparameters checked(Hyperparameters h, double initial_learning_rate) const {
        if (h.initial_learning_rate == 0.0) h.initial_learning_rate = initial_learning_rate;
        check_hyperparameters(rule, h);
        return h;
    }

    /// Allocates what the plan has and the parameter lacks (momentum may be switched on later).
    void allocate(Parameter& p) {
        items_are_current = false;
        const auto plan =
            plan_storage(rule, groups[p.group], options.storage, p.weight.dtype, p.layout, p.name);
        int stream = 0;
        const auto fit = [&](StateMemory& memory, const BufferPlan& wanted) {
            if (!(memory.plan() == wanted)) {
                memory = options.device ? StateMemory(*options.device, wanted)
                                        : StateMemory(arena, wanted, stream);
            }
            ++stream;
        };
        if (plan.first.count != p.plan.first.count) p.has_momentum = false;  // momentum came or went
        p.plan = plan;
        fit(p.correction, plan.correction);
        fit(p.first, plan.first);
        fit(p.first_scales, plan.first_scales);
        fit(p.second, plan.second);
        fit(p.second_scales, plan.second_scales);
    }

    /// The device must have what is given for a parameter: what it cannot read ends the whole process's work
    /// there, later.
    void check_memory(const void* data, const Parameter& p, const std::string& what) const {
        if (options.device && p.layout.numel > 0) options.device->check_memory(data, what);
    }

    /// Brings a gradient of another memory order into the weight's.
    static const void* ordered_gradient(Parameter& p) {
        if (p.gradient_in_order) return p.gradient.data;
        p.ordered_gradient.resize(BufferPlan{p.gradient.dtype, p.layout.numel}.bytes());
        copy_in_order(p.gradient, p.layout.strides, p.ordered_gradient.data());
        return p.ordered_gradient.data();
    }

    /// Makes the items of these parameters; what is in them from the last call and still right stays.
    void fill_items(std::span<Parameter* const> chosen) {
        items.resize(chosen.size());
        for (std::size_t n = 0; n < chosen.size(); ++n) {
            auto& p = *chosen[n];
            auto& item = items[n];
            if (!items_are_current || item.layout != &p.layout) {
                item.layout = &p.layout;
                item.plan = p.plan;
                item.weight = p.weight.data;
                item.state = {p.correction.data(), p.first.data(), p.first_scales.data(), p.second.data(),
                              p.second_scales.data()};
                item.rule = rule;
                item.hyperparameters = groups[p.group];
                item.check_gradient = options.check_gradients;
            }
            item.gradient = ordered_gradient(p);
            item.gradient_dtype = p.gradient.dtype;
            item.gradient_factor = gradient_factor;
            item.step = p.steps + 1;
            item.has_momentum = p.has_momentum;
        }
        items_are_current = true;
    }
    std::span<Parameter* const> all_with_gradient() {
        with_gradient.clear();
        for (auto& p : parameters) {
            if (p.gradient.data != nullptr) with_gradient.push_back(&p);
        }
        return with_gradient;
    }

    /// What steps `list` on the device; null where there is none.
    CountingStepper<ParameterId>* stepper_of(DeviceList& list) const {
        if (options.device && !list) list.emplace(options.device->stepper());
        return list ? &*list : nullptr;
    }
    void add_bad(ParameterId id, std::uint64_t count) { parameters[id].bad_elements += count; }
    /// Waits for the counts that are still on the device.
    void collect(DeviceList& list) {
        if (list) list->collect([this](ParameterId id, std::uint64_t count) { add_bad(id, count); });
    }
    void step_on_device(CountingStepper<ParameterId>& stepper, std::span<Parameter* const> chosen) {
        std::vector<ParameterId> ids;
        for (const auto* p : chosen) ids.push_back(static_cast<ParameterId>(p - parameters.data()));
        stepper.step(items, ids, [this](ParameterId id, std::uint64_t count) { add_bad(id, count); });
    }

    StepReport step(std::span<Parameter* const> chosen, DeviceList& list) {
        fill_items(chosen);
        auto* const stepper = stepper_of(list);
        StepReport report;
        if (options.nonfinite != NonFinite::kSkipElement) {
            report.bad_elements = stepper != nullptr ? (*stepper)->count_bad_gradients(items, {})
                                                     : count_bad_gradients(items, pool);
            if (report.bad_elements != 0) {
                skip(chosen);
                report.skipped = true;
                return report;
            }
        }
        if (stepper != nullptr) {
            step_on_device(*stepper, chosen);
        } else {
            report.bad_elements = flashoptim::step(items, pool, options.backend);
        }
        for (auto* p : chosen) {
            ++p->steps;
            p->has_momentum = true;
        }
        if (report.bad_elements != 0) count_bad(chosen);
        return report;
    }

    void count_bad(std::span<Parameter* const> chosen) const {
        for (std::size_t n = 0; n < chosen.size(); ++n) chosen[n]->bad_elements += items[n].bad_elements;
    }

    void skip(std::span<Parameter* const> chosen) const {
        count_bad(chosen);
        if (options.nonfinite != NonFinite::kError) return;
        const auto bad =
            std::ranges::find_if(items, [](const StepItem& item) { return item.bad_elements != 0; });
        throw NonFiniteError(
            "the gradient of " + chosen[static_cast<std::size_t>(bad - items.begin())]->name + " has " +
            std::to_string(bad->bad_elements) +
            " elements that are NaN, infinite or at least 2^48: nothing was stepped; lower the "
            "learning rate or the loss scale, or choose the policy skip_element");
    }

    [[nodiscard]] HostBytes on_host(void* data, std::size_t bytes) const {
        if (!options.device) return {{static_cast<std::byte*>(data), bytes}, nullptr};
        auto copy = std::make_shared<std::byte[]>(bytes);
        options.device->copy_to_host(copy.get(), data, bytes);
        const std::span<std::byte> all(copy.get(), bytes);
        return {all, std::move(copy)};
    }
    [[nodiscard]] HostBytes on_host(const StateMemory& memory) const {
        return on_host(memory.data(), memory.bytes());
    }
    [[nodiscard]] HostBytes weight_on_host(const Parameter& p) const {
        return on_host(p.weight.data, static_cast<std::size_t>(p.layout.numel) * size_of(p.weight.dtype));
    }
    [[nodiscard]] std::vector<float> moment_values(Moment moment, const Parameter& p,
                                                   const StateMemory& codes,
                                                   const StateMemory& scales) const {
        if (codes.plan().count == 0) return {};
        std::vector<float> values(static_cast<std::size_t>(p.layout.numel));
        const auto codes_here = on_host(codes), scales_here = on_host(scales);
        dequantize_moment(moment, p.plan.moments, p.layout, codes_here.bytes, scales_of(scales_here.bytes),
                          values);
        return values;
    }
    struct NamedBuffer {
        std::string name;
        const StateMemory* memory;
        bool is_scales;
    };
    [[nodiscard]] std::array<NamedBuffer, 5> buffers_of(const Parameter& p) const {
        const bool is_sgd = rule == Rule::kSGD || rule == Rule::kSGDW;
        const std::string first = is_sgd ? "momentum_buffer" : "exp_avg";
        return {{{"error_bits", &p.correction, false},
                 {first, &p.first, false},
                 {first + "_scales", &p.first_scales, true},
                 {"exp_avg_sq", &p.second, false},
                 {"exp_avg_sq_scales", &p.second_scales, true}}};
    }
    void write(void* to, std::span<const std::byte> bytes) const {
        if (bytes.empty()) return;
        if (options.device) {
            options.device->copy_from_host(to, bytes.data(), bytes.size());
        } else {
            std::memcpy(to, bytes.data(), bytes.size());
        }
    }

    Rule rule;
    OptimizerOptions options;
    ThreadPool pool;
    std::vector<Hyperparameters> groups;
    StateArena arena;
    std::vector<Parameter> parameters;
    DeviceList all_on_device;
    float gradient_factor = 1.0F;
    // Of one call; kept so that a step allocates nothing.
    std::vector<Parameter*> with_gradient;
    std::vector<StepItem> items;
    bool items_are_current = false;  // no plan and no hyperparameter has changed since
};

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
    auto& changed = impl_->group_at(group);
    changed = impl_->checked(hyperparameters, changed.initial_learning_rate);
    impl_->items_are_current = false;
    for (auto& p : impl_->parameters) {
        if (p.group == group) impl_->allocate(p);
    }
}
void Optimizer::set_learning_rate(double learning_rate) {
    for (GroupId group = 0; group < impl_->groups.size(); ++group) set_learning_rate(group, learning_rate);
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
    Parameter p;
    p.name = name.empty() ? "parameter " + std::to_string(impl_->parameters.size()) : std::move(name);
    impl_->group_at(group);
    p.group = group;
    p.weight = weight;
    if (p.weight.strides.empty()) p.weight.strides = row_major_strides(p.weight.shape);
    p.layout = shard ? layout_of(p.weight, *shard, p.name) : layout_of(p.weight, p.name);
    if (p.weight.data == nullptr && p.layout.numel > 0) {
        throw InvalidArgument(p.name + " has no data: give a pointer to its " +
                              std::to_string(p.layout.numel) + " elements");
    }
    impl_->check_memory(p.weight.data, p, p.name);
    for (const auto& other : impl_->parameters) {
        if (overlaps(p, other)) {
            throw InvalidArgument(p.name + " overlaps " + other.name +
                                  " in memory: add a shared weight once, with the sum of its gradients");
        }
    }
    impl_->allocate(p);
    impl_->parameters.push_back(std::move(p));
    return impl_->parameters.size() - 1;
}
std::size_t Optimizer::parameter_count() const { return impl_->parameters.size(); }
const std::string& Optimizer::name(ParameterId parameter) const { return impl_->at(parameter).name; }
const TensorView& Optimizer::weight(ParameterId parameter) const { return impl_->at(parameter).weight; }
Optimizer::GroupId Optimizer::group_of(ParameterId parameter) const { return impl_->at(parameter).group; }

void Optimizer::set_gradient(ParameterId parameter, const TensorView& gradient) {
    auto& p = impl_->at(parameter);
    auto view = gradient;
    if (view.strides.empty()) view.strides = row_major_strides(view.shape);
    if (view.shape != p.weight.shape || view.strides.size() != view.shape.size()) {
        throw InvalidArgument("the gradient of " + p.name +
                              " has another shape than its weight: give one of " +
                              std::to_string(p.layout.numel) + " elements in the weight's shape");
    }
    if (!is_floating(view.dtype)) {
        throw InvalidArgument("the gradient of " + p.name + " is " + std::string(name_of(view.dtype)) +
                              ": gradients must be float32, bfloat16 or float16");
    }
    if (view.data == nullptr && p.layout.numel > 0) {
        throw InvalidArgument("the gradient of " + p.name +
                              " has no data: use clear_gradient to take it away");
    }
    const bool in_order = same_memory_order(view.shape, view.strides, p.layout.strides);
    if (!in_order && impl_->options.device) {
        throw InvalidArgument("the gradient of " + p.name +
                              " lies in another memory order than its weight: on a device bring it into the "
                              "weight's order first");
    }
    if (view.data != p.gradient.data) impl_->check_memory(view.data, p, "the gradient of " + p.name);
    p.gradient_in_order = in_order;
    if (p.gradient_in_order) p.ordered_gradient = {};
    p.gradient = std::move(view);
    if (p.gradient.data == nullptr) p.gradient.data = &p;  // empty, but set: its step count advances
}
void Optimizer::clear_gradient(ParameterId parameter) {
    auto& p = impl_->at(parameter);
    p.gradient = {};
    p.ordered_gradient = {};
}

void Optimizer::set_gradient_factor(double factor) {
    if (!std::isfinite(factor))
        throw InvalidArgument("gradient_factor is not finite: check the loss scale and the norm");
    const DefaultFloatEnvironment exact;
    impl_->gradient_factor = static_cast<float>(factor);
}

double Optimizer::grad_norm() {
    impl_->fill_items(impl_->all_with_gradient());
    if (auto* const stepper = impl_->stepper_of(impl_->all_on_device))
        return (*stepper)->grad_norm(impl_->items);
    return flashoptim::grad_norm(impl_->items, impl_->pool);
}

StepReport Optimizer::step() { return impl_->step(impl_->all_with_gradient(), impl_->all_on_device); }
StepReport Optimizer::step_parameter(ParameterId parameter) {
    auto* p = &impl_->at(parameter);
    if (p->gradient.data == nullptr) {
        throw InvalidArgument(p->name + " has no gradient: call set_gradient before step_parameter");
    }
    return impl_->step({&p, 1}, p->alone);
}

std::int64_t Optimizer::step_count(ParameterId parameter) const { return impl_->at(parameter).steps; }
void Optimizer::set_step_count(ParameterId parameter, std::int64_t steps) {
    if (steps < 0)
        throw InvalidArgument("step count is " + std::to_string(steps) + ": it must not be negative");
    impl_->at(parameter).steps = steps;
}
std::uint64_t Optimizer::bad_elements(ParameterId parameter) const {
    auto& p = impl_->at(parameter);
    impl_->collect(impl_->all_on_device);
    impl_->collect(p.alone);
    return p.bad_elements;
}

std::vector<float> Optimizer::master(ParameterId parameter) const {
    std::vector<float> values(static_cast<std::size_t>(impl_->at(parameter).layout.numel));
    copy_master(parameter, values);
    return values;
}
void Optimizer::copy_master(ParameterId parameter, std::span<float> to) const {
    const auto& p = impl_->at(parameter);
    if (to.size() != static_cast<std::size_t>(p.layout.numel)) {
        throw InvalidArgument(p.name + " has " + std::to_string(p.layout.numel) + " elements, not " +
                              std::to_string(to.size()));
    }
    const auto weight = impl_->weight_on_host(p), correction = impl_->on_host(p.correction);
    join_weights(p.plan, weight.bytes.data(), correction.bytes.data(), to);
}
void Optimizer::set_master(ParameterId parameter, std::span<const float> values) {
    auto& p = impl_->at(parameter);
    if (values.size() != static_cast<std::size_t>(p.layout.numel)) {
        throw InvalidArgument(p.name + " has " + std::to_string(p.layout.numel) + " elements, not " +
                              std::to_string(values.size()));
    }
    if (!impl_->options.device) return split_weights(p.plan, values, p.weight.data, p.correction.data());
    std::vector<std::byte> weight(values.size() * size_of(p.weight.dtype)), correction(p.correction.bytes());
    split_weights(p.plan, values, weight.data(), correction.data());
    impl_->write(p.weight.data, weight);
    impl_->write(p.correction.data(), correction);
}
void Optimizer::refresh_masters(ParameterId parameter) {
    const auto& correction = impl_->at(parameter).correction;
    if (correction.bytes() == 0) return;
    if (impl_->options.device) return impl_->options.device->clear(correction.data(), correction.bytes());
    std::memset(correction.data(), 0, correction.bytes());
}
void Optimizer::refresh_masters() {
    for (ParameterId p = 0; p < impl_->parameters.size(); ++p) refresh_masters(p);
}

std::vector<float> Optimizer::first_moment(ParameterId parameter) const {
    const auto& p = impl_->at(parameter);
    return impl_->moment_values(Moment::kFirst, p, p.first, p.first_scales);
}
std::vector<float> Optimizer::second_moment(ParameterId parameter) const {
    const auto& p = impl_->at(parameter);
    return impl_->moment_values(Moment::kSecond, p, p.second, p.second_scales);
}

std::vector<StateTensor> Optimizer::state(ParameterId parameter) {
    const auto& p = impl_->at(parameter);
    std::vector<StateTensor> tensors;
    for (const auto& [name, buffer, is_scales] : impl_->buffers_of(p)) {
        if (buffer->plan().count == 0) continue;
        const auto shape = is_scales ? std::vector<std::int64_t>{buffer->plan().count} : p.weight.shape;
        auto here = impl_->on_host(*buffer);
        tensors.push_back({name, buffer->plan().dtype, shape, here.bytes, std::move(here.copy)});
    }
    return tensors;
}
StateTensor Optimizer::stored_weight(ParameterId parameter) {
    const auto& p = impl_->at(parameter);
    auto here = impl_->weight_on_host(p);
    return {kWeightName, p.weight.dtype, p.weight.shape, here.bytes, std::move(here.copy)};
}
void Optimizer::set_stored(ParameterId parameter, std::string_view name, std::span<const std::byte> bytes) {
    const auto& p = impl_->at(parameter);
    void* to = p.weight.data;
    std::size_t size = static_cast<std::size_t>(p.layout.numel) * size_of(p.weight.dtype);
    if (name != kWeightName) {
        size = 0;
        for (const auto& buffer : impl_->buffers_of(p)) {
            if (buffer.name != name) continue;
            to = buffer.memory->data();
            size = buffer.memory->bytes();
        }
    }
    if (bytes.size() != size) {
        throw InvalidArgument(p.name + " has " + std::to_string(size) + " bytes of " + std::string(name) +
                              ", not " + std::to_string(bytes.size()) +
                              ": give what state() or stored_weight() of the same storage gave");
    }
    impl_->write(to, bytes);
}
const StoragePlan& Optimizer::storage(ParameterId parameter) const { return impl_->at(parameter).plan; }
const Layout& Optimizer::layout(ParameterId parameter) const { return impl_->at(parameter).layout; }
bool Optimizer::has_momentum(ParameterId parameter) const { return impl_->at(parameter).has_momentum; }
void Optimizer::set_has_momentum(ParameterId parameter, bool has) { impl_->at(parameter).has_momentum = has; }

MemoryReport Optimizer::memory_report() const {
    MemoryReport report;
    for (const auto& p : impl_->parameters) {
        const auto numel = static_cast<std::size_t>(p.layout.numel);
        report.parameters += p.layout.numel;
        report.weights += numel * size_of(p.weight.dtype);
        report.corrections += p.correction.bytes();
        report.moments += p.first.bytes() + p.second.bytes();
        report.scales += p.first_scales.bytes() + p.second_scales.bytes();
        if (p.gradient.data != nullptr)
            report.gradients += numel * size_of(p.gradient.dtype) + p.ordered_gradient.size();
    }
    return report;
}

}  // namespace flashoptim
