// The base of the LibTorch optimizers: what the options, the states and the optimizers of all rules have in
// common. The classes of the rules are in libtorch.h.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashoptim/error.h"
#include "flashoptim/libtorch_headers.h"
#include "flashoptim/optimizer.h"
#include "flashoptim/step.h"

namespace flashoptim::libtorch {

/// The options of a parameter group, whatever the rule. The class of a rule adds what the rule reads.
class FlashOptions : public torch::optim::OptimizerOptions {
public:
    [[nodiscard]] Rule rule() const { return rule_; }  ///< the rule of these options
    [[nodiscard]] const Hyperparameters& hyperparameters() const {
        return hyperparameters_;
    }  ///< of the group
    [[nodiscard]] const StorageOptions& storage() const { return storage_; }  ///< the storage of parameters
    [[nodiscard]] NonFinite nonfinite_policy() const { return nonfinite_; }  ///< the policy for bad gradients
    [[nodiscard]] bool checks_gradients() const { return check_gradients_; }  ///< whether to detect them

    [[nodiscard]] double get_lr() const override { return hyperparameters_.learning_rate; }
    void set_lr(double value) override { hyperparameters_.learning_rate = value; }

    /// Takes the options that were neither set by a setter nor changed from `defaults`.
    /// @throws InvalidArgument if they are another rule's options.
    void inherit(const torch::optim::OptimizerOptions& defaults);
    /// Stores the learning rate as the first one, if the rule needs it and none is stored. Called when the
    /// group is added.
    void remember_first_learning_rate();
    /// Sets the hyperparameters that the rule reads. The others keep their defaults.
    void set_hyperparameters(const Hyperparameters& hyperparameters);
    /// The values of all options by their names in archives.
    [[nodiscard]] std::vector<std::pair<std::string, c10::IValue>> values() const;
    /// Sets all options. `read` returns the value of a name, or none.
    /// @throws FormatError for an option that is missing or out of its range.
    void set_values(const std::function<std::optional<c10::IValue>(const std::string& name)>& read);
    /// @throws FormatError for a key that is missing or of another type.
    void serialize(torch::serialize::InputArchive& archive) override;
    void serialize(torch::serialize::OutputArchive& archive) const override;
    /// Whether all values are equal.
    bool operator==(const FlashOptions& other) const;

protected:
    explicit FlashOptions(Rule rule) : rule_(rule), hyperparameters_(default_hyperparameters(rule)) {}

    Rule rule_;
    Hyperparameters hyperparameters_;
    StorageOptions storage_;
    NonFinite nonfinite_ = NonFinite::kSkipElement;
    bool check_gradients_ = true;
    std::vector<std::string_view> set_;  ///< names of the options whose setters were called

private:
    [[nodiscard]] bool is_own(std::string_view name) const;
};

/// The state of one parameter. Tensors that its storage does not have are undefined. Tensors of elements have
/// the parameter's shape and strides. Scales have the shape (rows, groups in a row), in the paper's format
/// (groups).
class FlashParamState : public torch::optim::OptimizerParamState {
    TORCH_ARG(std::int64_t, step) = 0;
    /// Number of elements that were skipped because their gradient was bad.
    TORCH_ARG(std::int64_t, bad_elements) = 0;
    /// Whether SGD's momentum buffer or Adan's last gradient has been filled.
    TORCH_ARG(bool, has_momentum) = false;

public:
    /// An empty state of a rule.
    explicit FlashParamState(Rule rule) : rule_(rule) {}

    [[nodiscard]] Rule rule() const { return rule_; }  ///< the rule of the parameter
    /// The tensor at a place of the state (step.h, StoragePlan).
    [[nodiscard]] const torch::Tensor& at(int place) const {
        return tensors_[static_cast<std::size_t>(place)];
    }
    /// As above, for changes.
    [[nodiscard]] torch::Tensor& at(int place) { return tensors_[static_cast<std::size_t>(place)]; }
    /// The tensor of this name in files: "error_bits", "exp_avg", "exp_avg_scales", ...
    /// @throws InvalidArgument if the rule has none.
    [[nodiscard]] const torch::Tensor& named(std::string_view name) const;
    /// The tensors that are defined, under their names in files.
    [[nodiscard]] std::vector<std::pair<std::string, torch::Tensor>> tensors() const;
    void serialize(torch::serialize::InputArchive& archive) override;
    void serialize(torch::serialize::OutputArchive& archive) const override;
    [[nodiscard]] std::unique_ptr<OptimizerParamState> clone() const override {
        return std::make_unique<FlashParamState>(*this);
    }

private:
    Rule rule_;
    std::array<torch::Tensor, kMaxBuffers> tensors_;  // indexed by place
};

struct OptimizerImpl;

/// Base of the LibTorch optimizers: a torch::optim::Optimizer over flashoptim::step.
///
/// Parameters are leaf tensors of float32, bfloat16 or float16, dense in any stride order, at an address that
/// is a multiple of their element's size. They lie on the CPU, or on CUDA devices if the library was built
/// with CUDA. A function that takes a parameter takes the tensor that is in a parameter group and throws
/// InvalidArgument for any other. The state of a parameter is made on its device with its first gradient. A
/// parameter that is taken out of its group loses its state.
///
/// Master weights survive changes of a parameter between steps: a clamp, a mask, an exchange with an average,
/// set_data(), loading of the module. The parameter keeps its correction, which moves the master weight by at
/// most half a unit in the last place of the stored weight. If dtype, strides or device change (Module::to),
/// the next use of the state converts it. The shape must not change. Only set_master, refresh_masters,
/// load_state_tensors and load replace corrections. So a module and its optimizer may be loaded in either
/// order.
///
/// Errors: flashoptim::Error, std::bad_alloc, and exceptions of torch and of closures. A call that throws
/// changes no parameter, no state and no option. (Under NonFinite::kError bad elements are counted. If
/// parameters lie on several devices, the parameters of one device are stepped together or not at all.)
///
/// Thread-safety: one optimizer serves one thread at a time; with GradientRelease any number of backward
/// passes. Different optimizers may be used in different threads at once.
class FlashOptimizer : public torch::optim::Optimizer {
public:
    ~FlashOptimizer() override;
    FlashOptimizer(FlashOptimizer&&) noexcept;
    FlashOptimizer& operator=(FlashOptimizer&&) noexcept;

    /// The update rule.
    [[nodiscard]] Rule rule() const;

    /// Adds a group. Options that the group does not set are those of defaults(). (LibTorch 2.13's own
    /// function drops the options of groups whose type is not LibTorch's.)
    /// @throws InvalidArgument names the bad parameter or option.
    void add_param_group(const torch::optim::OptimizerParamGroup& group);

    /// Evaluates the closure, if there is one, and steps every parameter that has a gradient.
    /// @return the closure's loss
    /// @throws InvalidArgument for a gradient that is sparse, of another shape, of a dtype other than
    ///         float32, bfloat16 and float16, or on another device; or while a CUDA graph is captured,
    ///         because its replays would repeat one step count.
    /// @throws NonFiniteError under NonFinite::kError.
    torch::Tensor step(LossClosure closure = nullptr) override;
    /// What the last step() did. A step on CUDA under NonFinite::kSkipElement does not block; its report has
    /// 0 bad elements and does not say whether found_inf skipped it. bad_elements() has the counts. Under
    /// GradientRelease each parameter is a step, and this is the report of the last one.
    [[nodiscard]] const StepReport& last_step() const;
    /// Clears gradients, including those of set_gradient(). (LibTorch's function is not virtual: called
    /// through a torch::optim::Optimizer& it clears only the parameters' own gradients.)
    void zero_grad(bool set_to_none = true);

    /// Sets a gradient to use in place of parameter.grad(), for one in another dtype (fp32 sums for bf16
    /// parameters). The tensor is kept, not copied, and each step reads it until zero_grad(). An undefined
    /// tensor removes it.
    /// @throws InvalidArgument as step(), and under GradientRelease, which steps by parameter.grad() only.
    void set_gradient(const torch::Tensor& parameter, const torch::Tensor& gradient);
    /// Sets a factor for all gradients, 1 at first: 1 / loss scale times clip coefficient. Must be finite.
    void set_gradient_factor(double factor);
    /// Sets a loss scale: steps and norms also multiply gradients by 1 / scale, in fp32. The tensor has one
    /// float32 element on any device. It is kept, not copied, and read when a step runs, so that a scale on
    /// the parameters' device does not block (for parameters on the CPU the host reads it). An undefined
    /// tensor removes it.
    /// @throws InvalidArgument for another dtype or number of elements.
    void set_grad_scale(const torch::Tensor& scale);
    /// Sets a flag, a tensor of the same kind, as torch's GradScaler computes it. If it is not 0 when a step
    /// runs, that step changes nothing and counts nothing. CUDA then counts the steps of its parameters
    /// itself; step_count(), has_momentum(), bad_elements() and save() block and bring the counts into the
    /// state.
    void set_found_inf(const torch::Tensor& found_inf);
    /// Euclidean norm of all gradients times the factor and 1 / loss scale. Bad elements are left out. The
    /// bits do not depend on the threads. Blocks for gradients on CUDA.
    [[nodiscard]] double grad_norm();
    /// Computes the same norm as a float64 tensor on the device of the gradients (the CPU if some lie there),
    /// without blocking. The next step() also multiplies gradients by min(1, max_norm / (norm + 1e-6)), as
    /// torch's clip_grad_norm_ does; zero_grad() cancels that.
    /// @throws InvalidArgument for a max_norm that is negative or NaN, and under GradientRelease.
    torch::Tensor clip_grad_norm(double max_norm);

    /// Sets the threads of a step. Until then a step uses at::get_num_threads(), and all such optimizers
    /// share one pool. The bits do not depend on the threads.
    void set_threads(int threads);
    /// Threads of a step.
    [[nodiscard]] int threads() const;

    /// The memory that weights, states and gradients use now.
    [[nodiscard]] MemoryReport memory_report() const;
    /// Number of bad elements of a parameter, also of steps that were skipped as a whole. Blocks for steps on
    /// CUDA; only then does the parameter's state have the count.
    [[nodiscard]] std::int64_t bad_elements(const torch::Tensor& parameter) const;
    /// Number of bad elements of all parameters.
    [[nodiscard]] std::int64_t bad_elements() const;

    /// The master weight: a new fp32 tensor with the parameter's shape and strides.
    [[nodiscard]] torch::Tensor master(const torch::Tensor& parameter);
    /// Sets the master weight: writes the parameter and its correction.
    void set_master(const torch::Tensor& parameter, const torch::Tensor& values);
    /// Makes the stored weight the master weight: clears the correction.
    void refresh_masters(const torch::Tensor& parameter);
    /// The same for every parameter.
    void refresh_masters();

    /// The state of a parameter for checkpoints: names and tensors, which share memory with the optimizer.
    /// Empty before the first step and for rules without state. Names: "error_bits", "exp_avg",
    /// "exp_avg_scales", "exp_avg_sq", "exp_avg_sq_scales", "momentum_buffer", "momentum_buffer_scales".
    [[nodiscard]] std::vector<std::pair<std::string, torch::Tensor>> state_tensors(
        const torch::Tensor& parameter);
    /// Replaces the state of a parameter by copies of `tensors`. An empty map gives the state before the
    /// first step. Also sets has_momentum if there is a momentum buffer. Step counts are set separately.
    /// @param parameter     in a group of this optimizer
    /// @param tensors       by the names of state_tensors()
    /// @param saved_strides strides of the parameter when the state was saved, if they were others. The first
    ///         use of the state then decodes its moments and encodes them again.
    /// @throws FormatError for a name that is missing or unknown, another dtype or shape, or values that no
    ///         step writes.
    void load_state_tensors(const torch::Tensor& parameter,
                            const std::map<std::string, torch::Tensor>& tensors,
                            at::IntArrayRef saved_strides = {});
    /// Number of steps that a parameter has made.
    [[nodiscard]] std::int64_t step_count(const torch::Tensor& parameter) const;
    /// Sets the number of steps that a parameter has made.
    void set_step_count(const torch::Tensor& parameter, std::int64_t steps);
    /// Sets the number of bad elements of a parameter.
    void set_bad_elements(const torch::Tensor& parameter, std::int64_t elements);
    /// Whether SGD's momentum buffer or Adan's last gradient has been filled.
    [[nodiscard]] bool has_momentum(const torch::Tensor& parameter) const;
    /// Says whether SGD's momentum buffer or Adan's last gradient has been filled.
    void set_has_momentum(const torch::Tensor& parameter, bool has);

    /// Saves the options of all groups and the states of all parameters, by position. Equal states give equal
    /// archives. The time is proportional to the number of parameters.
    void save(torch::serialize::OutputArchive& archive) const override;
    /// Loads an archive. A state of another dtype or memory order than its parameter's is converted at its
    /// first use, so the module may be loaded before or after.
    /// @throws FormatError for an archive of another optimizer, of other groups or shapes, or one that is
    ///         damaged.
    void load(torch::serialize::InputArchive& archive) override;

protected:
    FlashOptimizer(Rule rule, std::unique_ptr<FlashOptions> defaults,
                   const std::vector<torch::optim::OptimizerParamGroup>& groups);

private:
    friend class GradientRelease;
    friend struct OptimizerImpl;
    std::unique_ptr<OptimizerImpl> impl_;
};

}  // namespace flashoptim::libtorch

#endif
