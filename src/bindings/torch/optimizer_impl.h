// The implementation of FlashOptimizer: the table of its parameters and the way from it to one call of the
// core's step. Saving and loading are not here.
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

/// How a state lies in memory: what its tensors were made for.
struct StateForm {
    StoragePlan plan;
    Layout layout;  // its strides are those of the parameter at that time
    torch::Device device = torch::kCPU;
};

/// What the optimizer knows of a parameter.
struct Parameter {
    torch::Tensor tensor;
    std::string name;                  // for messages
    std::size_t group = 0, index = 0;  // where the parameter groups list it
    std::vector<std::int64_t> sizes;   // a parameter may change in all but these
    StateForm form;                    // that a state needs which is made now
    std::unique_ptr<StateForm>
        former;                     // that its state has, where it is another one: its next use converts it
    const void* memory = nullptr;   // that is known not to be shared with another parameter
    torch::Tensor gradient;         // instead of tensor.grad(), if defined
    std::uint64_t generation = 0;   // of the last look at the parameter groups that found it
    DeviceList alone;               // of gradient release
    torch::Tensor steps_done;       // int64 on its device: steps beyond those that its state knows of
    bool counts_on_device = false;  // whether there may be any; else what is in steps_done is of no use

    [[nodiscard]] void* key() const { return tensor.unsafeGetTensorImpl(); }
    [[nodiscard]] const StateForm& state_form() const { return former ? *former : form; }

    /// What a step reads; may be undefined.
    const torch::Tensor& gradient_now() const { return gradient.defined() ? gradient : tensor.grad(); }
};

/// A state that fits its parameter, before it takes the place of the one that does not.
struct FreshState {
    std::unique_ptr<FlashParamState> state;  // null: the parameter's own fits
    torch::Tensor weight;                    // defined: what the parameter must hold under it
};

/// Shared by an optimizer, the handle of its gradient release and the hooks; outlives each of them.
struct ReleaseControl {
    std::mutex mutex;
    OptimizerImpl* optimizer = nullptr;     // null: the optimizer is gone
    std::vector<torch::Tensor> parameters;  // those that have a hook
    bool said_so = false;
};

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

/// Tensors of one fp32 number that holds for all gradients; each may be undefined.
struct GradientNumbers {
    torch::Tensor grad_scale, clip_coefficient, found_inf;
    std::vector<WeakTensor> clipped{};  // whose norm the coefficient was made from

    /// Takes the coefficient back.
    void forget_clipping() noexcept {
        clip_coefficient.reset();
        clipped.clear();
    }
    /// The same where none of those gradients is left: the model's zero_grad() is not told to an optimizer.
    void follow_clipped() noexcept;
};

/// Items for the core on one device, and what must stay alive beside them.
struct StepBatch {
    torch::Device device;
    CountingStepper<const void*>* stepper;  // null on the CPU
    std::vector<StepItem> items;
    std::vector<Parameter*> parameters;
    std::vector<torch::Tensor> gradients;
    std::vector<FreshState> fresh;
    GradientNumbers here{};                   // on the device of a stepper
    std::vector<std::int64_t*> steps_done{};  // of each item, or empty

    [[nodiscard]] DeviceNumbers numbers() const;
};

/// Places for new states in the optimizer's map of them, so that putting the states in cannot fail. Places
/// that were not used go with this object.
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
    /// Checks and adds a parameter group; looks at its parameters only.
    void add_group(const torch::optim::OptimizerParamGroup& group);
    /// Takes in what changed in the parameter groups: new parameters, options.
    void refresh();
    /// The parameter of that tensor, as it is now; looks at the others only if it has not
    /// seen the tensor in its place.
    /// @throws InvalidArgument if it is in no group.
    Parameter& find(const torch::Tensor& tensor);
    /// All parameters, in the order of groups and of parameters in them.
    std::vector<Parameter*> all();
    [[nodiscard]] const FlashOptions& options_of(const Parameter& parameter) const;

    // states.cpp
    /// The state of a parameter, or null.
    [[nodiscard]] FlashParamState* state_of(const Parameter& parameter) const;
    /// A state of zeros if there is none, one that was converted if it lies in another
    /// form than the parameter's.
    [[nodiscard]] FreshState fresh_state(const Parameter& parameter);
    /// Puts it in the parameter's place of a StateSlots.
    void install(Parameter& parameter, std::unique_ptr<FlashParamState> state) noexcept;
    /// Puts what fresh_state() made in place, if it made anything.
    void adopt(Parameter& parameter, FreshState fresh);
    /// The state in whatever form it lies; made if there is none.
    FlashParamState& any_state(Parameter& parameter);
    /// Replaces the state by one of this form, or by none.
    void set_state(Parameter& parameter, std::unique_ptr<FlashParamState> state, StateForm form);
    /// Writes the weight of a state that was converted.
    static void write_weight(const Parameter& parameter, const torch::Tensor& weight);
    [[nodiscard]] torch::Tensor master(const Parameter& parameter) const;
    void set_master(Parameter& parameter, const torch::Tensor& values);
    void clear_correction(const Parameter& parameter) const;

    // counts.cpp
    /// Brings counts that are still on a device, of bad elements and of steps, into the states; waits.
    void collect_counts();
    /// Those of steps alone. Waits only after steps that found_inf on a device might keep back.
    void collect_steps();
    /// Adds to the parameter's count of bad elements.
    void count_bad(const void* key, std::uint64_t count) const noexcept;

    // step.cpp
    /// Takes a gradient in place of the tensor's own; an undefined one takes it back.
    void set_gradient(Parameter& parameter, const torch::Tensor& gradient);
    void clear_gradients();
    void step_all();
    /// Steps one parameter by tensor.grad(), without looking at the others.
    void step_one(const torch::Tensor& tensor);
    /// Whether gradient release does the steps; says so the first time.
    bool is_released();
    /// Parameters whose gradients no hook of gradient release has taken: those that came into
    /// a group after it was made.
    [[nodiscard]] std::vector<torch::Tensor> gradients_without_hook() const;
    [[nodiscard]] int threads() const;
    ThreadPool& pool();

    // gradient_numbers.cpp
    /// fp64, on the device where all gradients are, else on the CPU.
    torch::Tensor grad_norm();
    torch::Tensor clip_grad_norm(double max_norm);

    FlashOptimizer* owner;
    Rule rule;
    std::optional<int> chosen_threads;
    double gradient_factor = 1.0;
    GradientNumbers gradient_numbers;
    StepReport last_step;
    std::weak_ptr<ReleaseControl> release;
    std::uint64_t visits = 0;  // of parameters: work that grows faster than their number shows in tests

private:
    // parameters.cpp
    /// @throws InvalidArgument for a tensor that cannot be stepped.
    Parameter described(const torch::Tensor& tensor, std::size_t group, std::size_t index,
                        const FlashOptions& options) const;
    /// Notes what has changed in a parameter and its options since they were last looked at.
    void observe(Parameter& parameter);
    [[nodiscard]] bool is_listed(const Parameter& parameter) const;
    /// Forgets parameters that are in no group, and their states with them: a new tensor may get the
    /// address that was their key.
    void forget_unlisted();
    /// Registers the memory of all parameters. @throws InvalidArgument if two share some.
    void register_memory();
    /// That of one that may have moved.
    void register_memory(Parameter& parameter);

    // step.cpp
    /// @throws InvalidArgument for a gradient that cannot be the parameter's; an undefined one can.
    static void check_gradient(const Parameter& parameter, const torch::Tensor& gradient);
    /// Adds an item to the batch of its device. `list`: of those that step on a device; `makes_states`: else
    /// states that are missing or lie in another form are left out.
    void append(Parameter& parameter, const torch::Tensor& gradient, DeviceList& list, bool makes_states,
                std::vector<StepBatch>& batches);
    std::vector<StepBatch> all_with_gradients(bool makes_states);
    void run(std::vector<StepBatch>& batches, const GradientNumbers& numbers);
    /// Whether a policy looks at all gradients before anything is stepped.
    [[nodiscard]] bool must_count(const std::vector<StepBatch>& batches) const;
    /// Counts bad gradients and says whether a policy keeps the step back.
    bool is_kept_back(std::vector<StepBatch>& batches, StepReport& report);
    void keep_back(std::vector<StepBatch>& batches, const StepReport& report);
    void step_batch(StepBatch& batch, StepReport& report);
    void finish(StepBatch& batch) noexcept;
    [[nodiscard]] NonFinite policy_of(const Parameter& parameter) const {
        return options_of(parameter).nonfinite_policy();
    }

    // gradient_numbers.cpp
    /// Brings what gradients are multiplied by to where they are read: to the device, or into the items.
    static void bring_factors(std::vector<StepBatch>& batches, const GradientNumbers& numbers);
    /// Whether found_inf keeps the step back, as far as the host must know; else the devices look.
    bool is_found_inf(std::vector<StepBatch>& batches, const torch::Tensor& found_inf);
    /// Has steps counted on the device where only it knows whether they were made.
    void count_on_device(std::vector<StepBatch>& batches);

    /// The end of a parameter's memory, and whose it is.
    struct Range {
        const std::byte* end;
        const Parameter* parameter;
    };
    using Ranges = std::map<const std::byte*, Range>;
    /// The parameter whose memory meets this one's; null if there is none.
    static const Parameter* meets(const Ranges& ranges, const Parameter& parameter);
    /// @throws InvalidArgument if there is one.
    static void add_range(Ranges& ranges, const Parameter& parameter);

    std::unordered_map<const void*, Parameter> parameters_;
    Ranges ranges_;  // of the parameters' memory, by its beginning
    std::uint64_t generation_ = 0;
    bool may_count_steps_ = false;  // whether a device may have counted steps that are not collected
    bool may_count_bad_ = false;    // the same for bad elements
    std::shared_ptr<ThreadPool> pool_;
    std::map<torch::DeviceIndex, DeviceList> device_lists_;  // of step_all
};

}  // namespace flashoptim::libtorch
