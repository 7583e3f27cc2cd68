// The implementation class of the framework-free optimizer: its data for each parameter, and the functions
// that the source files of this folder share.
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

/// Bytes that the host can read: host memory itself, or a copy of device memory.
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
        MemoryRange gradient_range;               // its entry in gradient_ranges
        bool gradient_in_order = false;           // whether it has the weight's memory order
        std::vector<std::byte> ordered_gradient;  // otherwise a copy in the weight's memory order
        std::int64_t steps = 0;
        bool has_momentum = false;
        bool counts_on_device = false;  // further steps are counted in step_counters
        std::uint64_t bad_elements = 0;
        DeviceList alone;  // list of step_parameter()
    };
    /// Norms, in the same memory as the gradients.
    struct Norms {
        double taken = 0.0, clipped = 0.0;
        float clip_coefficient = 1.0F;
    };

    Impl(Rule rule_, const OptimizerOptions& options_)
        : rule(rule_), options(checked(rule_, options_)), pool(options_.threads) {}

    // check_options.cpp
    /// Returns the options if an optimizer of this rule can be made with them.
    ///
    /// @throws InvalidArgument if the rule, this build or processor does not support them.
    static OptimizerOptions checked(Rule rule, const OptimizerOptions& options);

    // optimizer.cpp
    /// The parameter of that number. @throws InvalidArgument if there is none.
    Parameter& at(ParameterId id);
    Hyperparameters& group_at(GroupId id);
    /// Checks hyperparameters and returns them. An initial_learning_rate of 0 is replaced by the argument.
    [[nodiscard]] Hyperparameters checked(Hyperparameters h, double initial_learning_rate) const;
    /// The state that a parameter needs under `h`. New hyperparameters may add a buffer: momentum may be
    /// switched on later.
    [[nodiscard]] StoredState stored_under(const Hyperparameters& h, const Parameter& p,
                                           StateArena& from) const;
    ParameterId add_parameter(Parameter p);
    void set_hyperparameters(GroupId group, const Hyperparameters& changed);
    /// Checks that a tensor is aligned and, on a device, in memory that the device can use. A kernel that
    /// reads other memory would break all later work of the process on that device.
    void check_memory(const TensorView& tensor, const Parameter& p, const std::string& what) const;
    /// Checks that the range overlaps no weight. A step writes weights while it reads gradients.
    /// @throws InvalidArgument names both tensors.
    void check_apart_from_weights(const TensorView& gradient, const MemoryRange& range,
                                  const std::string& name) const;
    void check_apart_from_all(const MemoryRange& weight, const std::string& name) const;

    // step.cpp
    std::span<Parameter* const> all_with_gradient();
    /// Steps the chosen parameters. The numbers of `with` lie in the same memory as the gradients.
    StepReport step(std::span<Parameter* const> chosen, DeviceList& list, DeviceNumbers with);
    /// Fills `items` for these parameters. Fields that are still valid from the last call are kept.
    void fill_items(std::span<Parameter* const> chosen, const DeviceNumbers& with);
    /// The stepper of `list`; null for an optimizer on the host.
    CountingStepper<ParameterId>* stepper_of(DeviceList& list) const;
    /// Adds the counts of bad elements that are still on the device. Blocks.
    void collect(DeviceList& list);

    // numbers.cpp
    /// Returns the address. @throws InvalidArgument if it is misaligned or the device cannot read it.
    const float* checked(const float* number, const char* name) const;
    double grad_norm();
    const double* clip_grad_norm(double max_norm);
    [[nodiscard]] bool is_set(const float* number) const;
    /// Makes the device count the steps of these parameters from the next step on, if found_inf is set: only
    /// the device knows then which steps were skipped.
    void count_on_device(std::span<Parameter* const> chosen);
    /// The device counters of these parameters; empty if the host counts the steps of all of them.
    std::span<std::int64_t* const> counters_of(std::span<Parameter* const> chosen);
    /// Adds the steps that were counted on the device. Blocks.
    void collect_steps();

    // state.cpp
    [[nodiscard]] HostBytes on_host(void* data, std::size_t bytes) const;
    [[nodiscard]] HostBytes on_host(const StateMemory& memory) const;
    [[nodiscard]] HostBytes weight_on_host(const Parameter& p) const;
    /// The address of the buffer of that name, or of the weight. @throws InvalidArgument for an unknown name
    /// or another number of bytes.
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
    DeviceNumbers numbers;  // for every step; clip_coefficient for the next step only
    std::shared_ptr<Norms> norms;
    std::shared_ptr<std::byte> step_counters;  // on the device; for the first parameters
    std::size_t step_counter_count = 0;
    bool device_counts_steps = false;  // for any parameter
    // Used within one call. They are kept so that a step allocates nothing.
    std::vector<Parameter*> with_gradient;
    std::vector<StepItem> items;
    std::vector<std::int64_t*> counters;
    bool items_are_current = false;  // no plan or hyperparameter has changed since they were filled

private:
    /// The gradient's address, after copying it into the weight's memory order if it has another.
    static const void* ordered_gradient(Parameter& p);
    /// @throws InvalidArgument if a step count is already 2^63 - 1.
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
