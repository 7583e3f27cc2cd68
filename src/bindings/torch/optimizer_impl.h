// The implementation of FlashOptimizer: the table of its parameters, and how a step calls the core once for
// all of them. Saving and loading are not here.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "device_backend.h"
#include "flashoptim/layout.h"
#include "flashoptim/libtorch.h"
#include "flashoptim/libtorch_headers.h"
#include "flashoptim/step.h"

namespace flashoptim::libtorch {

/// The form of a state: the plan, layout and device that its tensors were made for.
struct StateForm {
    StoragePlan plan;
    Layout layout;  // with the strides that the parameter had then
    torch::Device device = torch::kCPU;
};

/// What the optimizer stores about a parameter, besides its state.
struct Parameter {
    torch::Tensor tensor;
    std::string name;                   // for messages
    std::size_t group = 0, index = 0;   // its position in the parameter groups
    std::vector<std::int64_t> sizes;    // these never change; everything else may
    StateForm form;                     // the form that a new state must have
    std::unique_ptr<StateForm> former;  // the form of its state, if different: the next use converts it
    const void* memory = nullptr;       // memory known not to be shared with another parameter
    torch::Tensor gradient;             // replaces tensor.grad() if defined
    std::uint64_t generation = 0;       // number of the last refresh() that found it in a group
    DeviceList alone;                   // its own list, for gradient release
    torch::Tensor steps_done;           // int64 on its device: steps that its state does not count yet
    bool counts_on_device = false;      // whether steps_done is valid

    [[nodiscard]] void* key() const { return tensor.unsafeGetTensorImpl(); }
    [[nodiscard]] const StateForm& state_form() const { return former ? *former : form; }

    /// The gradient that a step reads. It may be undefined.
    const torch::Tensor& gradient_now() const { return gradient.defined() ? gradient : tensor.grad(); }
};

/// A new state that fits its parameter, not installed yet.
struct FreshState {
    std::unique_ptr<FlashParamState> state;  // null: the existing state fits
    torch::Tensor weight;                    // if defined: the weight that belongs to the new state
};

/// Shared by an optimizer, the handle of its gradient release and the hooks. It outlives all of them.
struct ReleaseControl {
    std::mutex mutex;
    OptimizerImpl* optimizer = nullptr;     // null: the optimizer was destroyed
    std::vector<torch::Tensor> parameters;  // the parameters with a hook
    bool said_so = false;
};

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

/// Numbers that apply to all gradients: tensors of one fp32 element. Each may be undefined.
struct GradientNumbers {
    torch::Tensor grad_scale, clip_coefficient, found_inf;
    std::vector<WeakTensor> clipped{};  // the gradients that clip_coefficient was computed from

    /// Removes the clip coefficient.
    void forget_clipping() noexcept {
        clip_coefficient.reset();
        clipped.clear();
    }
    /// Removes the clip coefficient if none of its gradients exists any more. An optimizer is not told when
    /// the model's zero_grad() frees them.
    void follow_clipped() noexcept;
};

/// The items of a step on one device, and the tensors that must stay alive during the step.
struct StepBatch {
    torch::Device device;
    CountingStepper<const void*>* stepper;  // null on the CPU
    std::vector<StepItem> items;
    std::vector<Parameter*> parameters;
    std::vector<torch::Tensor> gradients;
    std::vector<FreshState> fresh;
    GradientNumbers here{};                   // copies on the stepper's device
    std::vector<std::int64_t*> steps_done{};  // one per item, or empty

    [[nodiscard]] DeviceNumbers numbers() const;
};

/// Reserves entries in the optimizer's map of states, so that installing a new state cannot fail. The
/// destructor removes unused entries.
class StateSlots {
public:
    explicit StateSlots(FlashOptimizer& owner) : owner_(owner) {}
    ~StateSlots();
    StateSlots(const StateSlots&) = delete;
    StateSlots& operator=(const StateSlots&) = delete;
    void reserve(const Parameter& parameter);

private:
    FlashOptimizer& owner_;
    std::vector<void*> keys_;
};

struct OptimizerImpl {
    OptimizerImpl(FlashOptimizer& owner, Rule rule);
    ~OptimizerImpl();
    OptimizerImpl(const OptimizerImpl&) = delete;
    OptimizerImpl& operator=(const OptimizerImpl&) = delete;
    static OptimizerImpl& of(FlashOptimizer& optimizer) { return *optimizer.impl_; }

    // parameters.cpp
    /// Checks and adds a parameter group. Visits only the parameters of this group.
    void add_group(const torch::optim::OptimizerParamGroup& group);
    /// Brings the table up to date with the parameter groups: new parameters, new options.
    void refresh();
    /// Returns the up-to-date parameter of a tensor. Visits the other parameters only if the tensor is new or
    /// has moved to another position.
    /// @throws InvalidArgument if the tensor is in no group.
    Parameter& find(const torch::Tensor& tensor);
    /// All parameters, in the order of the groups and of the parameters in each group.
    std::vector<Parameter*> all();
    [[nodiscard]] const FlashOptions& options_of(const Parameter& parameter) const;

    // states.cpp
    /// The state of a parameter, or null.
    [[nodiscard]] FlashParamState* state_of(const Parameter& parameter) const;
    /// Makes a state of zeros if there is none, or a converted one if the state has another form than the
    /// parameter needs.
    [[nodiscard]] FreshState fresh_state(const Parameter& parameter);
    /// Installs a state in the entry that a StateSlots has reserved.
    void install(Parameter& parameter, std::unique_ptr<FlashParamState> state) noexcept;
    /// Installs the result of fresh_state(), if there is one.
    void adopt(Parameter& parameter, FreshState fresh);
    /// Returns the state in its present form. Makes one if there is none.
    FlashParamState& any_state(Parameter& parameter);
    /// Replaces the state by `state`, which has this form, or removes it if `state` is null.
    void set_state(Parameter& parameter, std::unique_ptr<FlashParamState> state, StateForm form);
    /// Writes the weight that belongs to a converted state.
    static void write_weight(const Parameter& parameter, const torch::Tensor& weight);
    [[nodiscard]] torch::Tensor master(const Parameter& parameter) const;
    void set_master(Parameter& parameter, const torch::Tensor& values);
    void clear_correction(const Parameter& parameter) const;

    // counts.cpp
    /// Adds the counts of steps and bad elements that are still on a device to the states. Blocks.
    void collect_counts();
    /// The same for the counts of steps alone. Blocks only if found_inf on a device may have skipped a step.
    void collect_steps();
    /// Adds to the parameter's count of bad elements.
    void count_bad(const void* key, std::uint64_t count) const noexcept;

    // flash_optimizer_step.cpp
    /// Sets a gradient that replaces tensor.grad(). An undefined one restores tensor.grad().
    void set_gradient(Parameter& parameter, const torch::Tensor& gradient);
    void clear_gradients();
    void step_all();
    /// Steps one parameter with its gradient. Does not visit the others.
    void step_one(const torch::Tensor& tensor);
    /// Whether gradient release makes the steps. Warns the first time.
    bool is_released();
    /// Gradients that no hook of gradient release takes: those of parameters that were added to a group after
    /// the hooks were made.
    [[nodiscard]] std::vector<torch::Tensor> gradients_without_hook() const;
    [[nodiscard]] int threads() const;
    ThreadPool& pool();

    // gradient_numbers.cpp
    /// The norm in fp64. It is on the device of the gradients if all are on one device, else on the CPU.
    torch::Tensor grad_norm();
    torch::Tensor clip_grad_norm(double max_norm);

    FlashOptimizer* owner;
    Rule rule;
    std::optional<int> chosen_threads;
    double gradient_factor = 1.0;
    GradientNumbers gradient_numbers;
    StepReport last_step;
    std::weak_ptr<ReleaseControl> release;
    std::uint64_t visits = 0;  // of parameters; tests check that their number grows linearly

private:
    // parameters.cpp
    /// @throws InvalidArgument for a tensor that cannot be stepped.
    Parameter described(const torch::Tensor& tensor, std::size_t group, std::size_t index,
                        const FlashOptions& options) const;
    /// Records what has changed in a parameter and its options since the last call.
    void observe(Parameter& parameter);
    [[nodiscard]] bool is_listed(const Parameter& parameter) const;
    /// Removes parameters that are in no group any more, with their states. A new tensor may get the same
    /// address, which is the key.
    void forget_unlisted();
    /// Registers the memory of all parameters. @throws InvalidArgument if two share memory.
    void register_memory();
    /// Registers the memory of one parameter that may have moved.
    void register_memory(Parameter& parameter);

    // flash_optimizer_step.cpp
    /// @throws InvalidArgument if the gradient does not fit the parameter. An undefined one fits.
    static void check_gradient(const Parameter& parameter, const torch::Tensor& gradient);
    /// Adds an item to the batch of its device. `list` is the list that steps it on a device. Without
    /// `makes_states`, a state that is missing or has another form is left out.
    void append(Parameter& parameter, const torch::Tensor& gradient, DeviceList& list, bool makes_states,
                std::vector<StepBatch>& batches);
    std::vector<StepBatch> all_with_gradients(bool makes_states);
    void run(std::vector<StepBatch>& batches, const GradientNumbers& numbers);
    /// Whether a policy checks all gradients before anything is stepped.
    [[nodiscard]] bool must_count(const std::vector<StepBatch>& batches) const;
    /// Counts bad gradients. Returns whether a policy skips the step.
    bool is_kept_back(std::vector<StepBatch>& batches, StepReport& report);
    void keep_back(std::vector<StepBatch>& batches, const StepReport& report);
    void step_batch(StepBatch& batch, StepReport& report);
    void finish(StepBatch& batch) noexcept;
    [[nodiscard]] NonFinite policy_of(const Parameter& parameter) const {
        return options_of(parameter).nonfinite_policy();
    }

    // gradient_numbers.cpp
    /// Copies the factors of the gradients to where the step reads them: to the device, or into the items.
    static void bring_factors(std::vector<StepBatch>& batches, const GradientNumbers& numbers);
    /// Whether found_inf skips the step, if the host must know that. Otherwise the devices read it.
    bool is_found_inf(std::vector<StepBatch>& batches, const torch::Tensor& found_inf);
    /// Makes a device count the steps where only the device knows whether they were made.
    void count_on_device(std::vector<StepBatch>& batches);

    /// The end of a block of memory, and the parameter that owns it.
    struct Range {
        const std::byte* end;
        const Parameter* parameter;
    };
    using Ranges = std::map<const std::byte*, Range>;
    /// The parameter whose memory overlaps that of `parameter`, or null.
    static const Parameter* meets(const Ranges& ranges, const Parameter& parameter);
    /// Adds the memory of `parameter`. @throws InvalidArgument if it overlaps another parameter's.
    static void add_range(Ranges& ranges, const Parameter& parameter);

    std::unordered_map<const void*, Parameter> parameters_;
    Ranges ranges_;  // the memory of the parameters, by its start
    std::uint64_t generation_ = 0;
    bool may_count_steps_ = false;  // whether a device may hold counts of steps
    bool may_count_bad_ = false;    // whether a device may hold counts of bad elements
    std::shared_ptr<ThreadPool> pool_;
    std::map<torch::DeviceIndex, DeviceList> device_lists_;  // the lists that step_all steps
};

}  // namespace flashoptim::libtorch
