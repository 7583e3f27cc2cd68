// The inside of the framework-free optimizer: what it knows of each parameter, and what the
// files beside this one share.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "flashoptim/optimizer.h"
#include "flashoptim/quantize.h"
#include "memory_ranges.h"
#include "state_memory.h"

namespace flashoptim {

/// What the host may read: memory of its own, or a copy of a device's.
struct HostBytes {
    std::span<std::byte> bytes;
    std::shared_ptr<std::byte[]> copy;
};

struct Optimizer::Impl {
    using DeviceList = std::optional<CountingStepper<ParameterId>>;

    struct Parameter {
        std::string name;
        TensorView weight;
        GroupId group = 0;
        Layout layout;
        StoredState stored;
        TensorView gradient;
        bool has_gradient = false;
        MemoryRange gradient_range;               // in gradient_ranges
        bool gradient_in_order = false;           // whether it lies as the weight does
        std::vector<std::byte> ordered_gradient;  // otherwise a copy that does
        std::int64_t steps = 0;
        bool has_momentum = false;
        bool counts_on_device = false;  // those beyond `steps` are in step_counters
        std::uint64_t bad_elements = 0;
        DeviceList alone;  // of step_parameter
    };
    /// Lies where the gradients do.
    struct Norms {
        double taken = 0.0, clipped = 0.0;
        float clip_coefficient = 1.0F;
    };

    Impl(Rule rule_, const OptimizerOptions& options_)
        : rule(rule_), options(checked(options_)), pool(options_.threads) {}

    // check_options.cpp
    /// @throws InvalidArgument for what no optimizer of this process can do.
    static OptimizerOptions checked(const OptimizerOptions& options);

    // optimizer.cpp
    /// @throws InvalidArgument where there is none.
    Parameter& at(ParameterId id);
    Hyperparameters& group_at(GroupId id);
    /// Hyperparameters that may be used; where the first learning rate is not told it
    /// is `initial_learning_rate`.
    [[nodiscard]] Hyperparameters checked(Hyperparameters h, double initial_learning_rate) const;
    /// The state of a parameter under hyperparameters, which may be new ones (momentum
    /// may be switched on later).
    [[nodiscard]] StoredState stored_under(const Hyperparameters& h, const Parameter& p,
                                           StateArena& from) const;
    ParameterId add_parameter(Parameter p);
    void set_hyperparameters(GroupId group, const Hyperparameters& changed);
    /// Elements must lie where they can be read. A device must have what is given for a parameter: what it
    /// cannot read ends the whole process's work there, later.
    void check_memory(const TensorView& tensor, const Parameter& p, const std::string& what) const;
    /// A step writes weights while it reads gradients: neither a gradient nor another weight
    /// may lie in a weight's memory.
    /// @throws InvalidArgument that names both
    void check_apart_from_weights(const TensorView& gradient, const MemoryRange& range,
                                  const std::string& name) const;
    void check_apart_from_all(const MemoryRange& weight, const std::string& name) const;

    // step.cpp
    std::span<Parameter* const> all_with_gradient();
    /// `with` lies where the gradients do.
    StepReport step(std::span<Parameter* const> chosen, DeviceList& list, DeviceNumbers with);
    /// Makes the items of these parameters; what is in them from the last call and still right stays.
    void fill_items(std::span<Parameter* const> chosen, const DeviceNumbers& with);
    /// What steps `list` on the device; null where there is none.
    CountingStepper<ParameterId>* stepper_of(DeviceList& list) const;
    /// Waits for the counts of bad elements that are still on the device.
    void collect(DeviceList& list);

    // numbers.cpp
    /// @throws InvalidArgument where the device cannot read it.
    const float* checked(const float* number, const char* name) const;
    double grad_norm();
    const double* clip_grad_norm(double max_norm);
    [[nodiscard]] bool is_set(const float* number) const;
    /// Of the next step, if these may be kept back where nobody on the host knows.
    void count_on_device(std::span<Parameter* const> chosen);
    /// Where the steps of these parameters are counted; empty if the host counts them all.
    std::span<std::int64_t* const> counters_of(std::span<Parameter* const> chosen);
    /// Waits for the steps that were counted on the device.
    void collect_steps();

    // state.cpp
    [[nodiscard]] HostBytes on_host(void* data, std::size_t bytes) const;
    [[nodiscard]] HostBytes on_host(const StateMemory& memory) const;
    [[nodiscard]] HostBytes weight_on_host(const Parameter& p) const;
    /// Where the buffer of that name lies, or the weight. @throws InvalidArgument for
    /// another name or number of bytes.
    [[nodiscard]] void* place_of(const Parameter& p, const StoredState& stored, std::string_view name,
                                 std::size_t bytes) const;
    void write(void* to, std::span<const std::byte> bytes) const;

    Rule rule;
    OptimizerOptions options;
    ThreadPool pool;
    std::vector<Hyperparameters> groups;
    StateArena arena;
    MemoryRanges weight_ranges{MemoryRanges::Each::kApart}, gradient_ranges{MemoryRanges::Each::kAnywhere};
    std::vector<Parameter> parameters;
    DeviceList all_on_device;
    float gradient_factor = 1.0F;
    DeviceNumbers numbers;  // of every step; the clip coefficient of the next one alone
    std::shared_ptr<Norms> norms;
    std::shared_ptr<std::byte> step_counters;  // on the device, one for each of the first parameters
    std::size_t step_counter_count = 0;
    bool device_counts_steps = false;  // of any parameter
    // Of one call; kept so that a step allocates nothing.
    std::vector<Parameter*> with_gradient;
    std::vector<StepItem> items;
    std::vector<std::int64_t*> counters;
    bool items_are_current = false;  // no plan and no hyperparameter has changed since

private:
    /// Brings a gradient of another memory order into the weight's.
    static const void* ordered_gradient(Parameter& p);
    /// @throws InvalidArgument where a parameter has made as many steps as can be counted.
    void check_step_counts(std::span<Parameter* const> chosen);
    void add_bad(ParameterId id, std::uint64_t count) { parameters[id].bad_elements += count; }
    void step_on_device(CountingStepper<ParameterId>& stepper, std::span<Parameter* const> chosen,
                        const DeviceNumbers& with);
    Norms* norms_here();
    void take_norm(double* to, double max_norm, float* coefficient);
    void count_bad(std::span<Parameter* const> chosen) const;
    /// @throws NonFiniteError under NonFinite::kError.
    void skip(std::span<Parameter* const> chosen) const;
};

}  // namespace flashoptim
