// What stands behind FlashOptimizer: the table of its parameters and the way from it to one call of the core's step.
// Saving and loading never stand here.
#pragma once

#include <torch/torch.h>

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
#include "flashoptim/step.h"

namespace flashoptim::libtorch {

/// A parameter as it was when the optimizer first saw it.
struct Parameter {
    torch::Tensor tensor;
    std::string name;  // for messages
    std::size_t group = 0;
    Layout layout;
    StoragePlan plan;  // that its state was made by, if it has one
    torch::Device device = torch::kCPU;
    const void* memory = nullptr;   // that is known not to be shared with another parameter
    torch::Tensor gradient;         // instead of tensor.grad(), if defined
    std::uint64_t generation = 0;   // of the last look at the parameter groups that found it
    DeviceList alone;               // of gradient release
    torch::Tensor steps_done;       // int64 on its device: steps beyond those that its state knows of
    bool counts_on_device = false;  // whether there may be any
};

/// Shared by an optimizer, the handle of its gradient release and the hooks; outlives each of them.
struct ReleaseControl {
    std::mutex mutex;
    OptimizerImpl* optimizer = nullptr;     // null: the optimizer is gone
    std::vector<torch::Tensor> parameters;  // those that have a hook
    bool said_so = false;
};

/// Tensors of one fp32 number that holds for all gradients; each may be undefined.
struct GradientNumbers {
    torch::Tensor grad_scale, clip_coefficient, found_inf;
};

/// Items for the core on one device, and what must stay alive beside them.
struct StepBatch {
    torch::Device device;
    CountingStepper<const void*>* stepper;  // null on the CPU
    std::vector<StepItem> items;
    std::vector<Parameter*> parameters;
    std::vector<torch::Tensor> gradients;
    GradientNumbers here{};                   // on the device of a stepper
    std::vector<std::int64_t*> steps_done{};  // of each item, or empty

    [[nodiscard]] DeviceNumbers numbers() const;
};

struct OptimizerImpl {
    OptimizerImpl(FlashOptimizer& owner, Rule rule);
    ~OptimizerImpl();
    OptimizerImpl(const OptimizerImpl&) = delete;
    OptimizerImpl& operator=(const OptimizerImpl&) = delete;

    /// Checks and adds a parameter group.
    void add_group(const torch::optim::OptimizerParamGroup& group);
    /// Takes in what changed in the parameter groups: new parameters, options.
    void refresh();
    /// The parameter of that tensor. @throws InvalidArgument if it is in no group.
    Parameter& find(const torch::Tensor& tensor);
    /// All parameters, in the order of groups and of parameters in them.
    std::vector<Parameter*> all();
    [[nodiscard]] const FlashOptions& options_of(const Parameter& parameter) const;

    /// The state of a parameter, or null.
    [[nodiscard]] FlashParamState* state_of(const Parameter& parameter) const;
    /// The state, made of zeros if there is none.
    FlashParamState& ensure_state(const Parameter& parameter);
    void clear_correction(const Parameter& parameter);
    /// Brings counts that are still on a device, of bad elements and of steps, into the states; waits.
    void collect_counts();
    /// Those of steps alone. Waits only after steps that found_inf on a device might keep back.
    void collect_steps();
    void set_state(const Parameter& parameter, std::unique_ptr<FlashParamState> state);

    /// Takes a gradient in place of the tensor's own; an undefined one takes it back.
    void set_gradient(Parameter& parameter, const torch::Tensor& gradient);
    void clear_gradients();

    void step_all();
    /// Steps one parameter by tensor.grad(), without looking at the others.
    void step_one(const torch::Tensor& tensor);
    /// fp64, on the device where all gradients are, else on the CPU.
    torch::Tensor grad_norm();
    torch::Tensor clip_grad_norm(double max_norm);

    /// Whether gradient release does the steps; says so the first time.
    bool is_released();

    [[nodiscard]] int threads() const;
    ThreadPool& pool();

    FlashOptimizer* owner;
    Rule rule;
    std::optional<int> chosen_threads;
    double gradient_factor = 1.0;
    GradientNumbers gradient_numbers;
    StepReport last_step;
    std::weak_ptr<ReleaseControl> release;

private:
    void adopt(const torch::Tensor& tensor, std::size_t group, std::size_t index);
    void update(Parameter& parameter);
    void change_plan(Parameter& parameter, const StoragePlan& plan);
    /// Forgets parameters, and their states with them: a new tensor may get the address that was their key.
    template <class Condition>
    void forget_if(const Condition& condition);
    void refuse_shared_memory();
    /// The gradient, checked and in the parameter's memory order; nothing of an undefined one.
    static std::optional<torch::Tensor> ordered_gradient(const Parameter& parameter,
                                                         const torch::Tensor& gradient);
    /// Adds an item to the batch of its device, without making a state for it. `list`: of those that step on a device.
    void append(Parameter& parameter, const torch::Tensor& gradient, DeviceList& list,
                std::vector<StepBatch>& batches);
    std::vector<StepBatch> all_with_gradients();
    /// Makes the states that are missing and steps.
    void run(std::vector<StepBatch>& batches, const GradientNumbers& numbers);
    /// Brings what gradients are multiplied by to where they are read: to the device, or into the items.
    static void bring_factors(std::vector<StepBatch>& batches, const GradientNumbers& numbers);
    /// Whether found_inf keeps the step back, as far as the host must know; else the devices look.
    bool is_found_inf(std::vector<StepBatch>& batches, const torch::Tensor& found_inf);
    /// Has steps counted on the device where only it knows whether they were made.
    static void count_on_device(std::vector<StepBatch>& batches);
    /// Whether a policy looks at all gradients before anything is stepped.
    bool must_count(const std::vector<StepBatch>& batches) const;
    /// Counts bad gradients and says whether a policy keeps the step back.
    bool is_kept_back(std::vector<StepBatch>& batches);
    void step_batch(StepBatch& batch);
    /// Adds to the parameter's count of bad elements.
    void count_bad(const void* key, std::uint64_t count);
    [[nodiscard]] NonFinite policy_of(const Parameter& parameter) const {
        return options_of(parameter).nonfinite_policy();
    }

    std::unordered_map<const void*, Parameter> parameters_;
    std::uint64_t generation_ = 0;
    std::optional<ThreadPool> pool_;
    std::map<torch::DeviceIndex, DeviceList> device_lists_;  // of step_all
};

}  // namespace flashoptim::libtorch
