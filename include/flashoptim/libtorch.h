// The optimizers as LibTorch knows them, gradient release and casting of models. What the numbers mean and how they are
// stepped is in the core; nothing here computes.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "flashoptim/error.h"
#include "flashoptim/optimizer.h"
#include "flashoptim/step.h"

namespace flashoptim::libtorch {

/// One option of a parameter group, and whether it was set by its setter. An option that was neither set nor changed
/// takes the value of the optimizer's defaults.
template <class T>
struct Option {
    T value;
    bool is_set = false;
};

/// As TORCH_ARG: `options.name(value)` sets and returns the options, `options.name()` reads.
#define FLASHOPTIM_OPTION(T, name)                                         \
public:                                                                    \
    Self& name(const T& value) {                                           \
        name##_ = {value, true};                                           \
        return static_cast<Self&>(*this);                                  \
    }                                                                      \
    [[nodiscard]] const T& name() const noexcept { return name##_.value; } \
    [[nodiscard]] T& name() noexcept { return name##_.value; }             \
                                                                           \
private:                                                                   \
    Option<T> name##_

/// What the options of every rule can be asked.
class FlashOptions : public torch::optim::OptimizerOptions {
public:
    [[nodiscard]] virtual Hyperparameters hyperparameters() const = 0;
    [[nodiscard]] virtual StorageOptions storage() const = 0;
    [[nodiscard]] virtual NonFinite nonfinite_policy() const = 0;
    [[nodiscard]] virtual bool checks_gradients() const = 0;
    /// Takes over from `defaults` what was not set here. @throws InvalidArgument if they are another rule's options.
    virtual void inherit(const torch::optim::OptimizerOptions& defaults) = 0;
    /// Remembers the learning rate as the first one, if the rule asks for it and none is remembered; called when the group
    /// is added.
    virtual void remember_first_learning_rate() = 0;
    /// The values of all options by their names, as archives hold them.
    [[nodiscard]] virtual std::vector<std::pair<std::string, c10::IValue>> values() const = 0;
    /// The way back: `read` gives the value of a name, none if there is none.
    /// @throws FormatError for one that is missing or out of its range.
    virtual void set_values(
        const std::function<std::optional<c10::IValue>(const std::string& name)>& read) = 0;
};

/// The options that all rules share; `Self` is the rule's own options type.
template <class Self_>
class CommonOptions : public FlashOptions {
protected:
    using Self = Self_;
    CommonOptions(double lr, double weight_decay) : lr_{lr}, weight_decay_{weight_decay} {}

    FLASHOPTIM_OPTION(double, lr);
    FLASHOPTIM_OPTION(double, weight_decay);
    FLASHOPTIM_OPTION(bool, maximize) { false };
    /// Number format of the moments and of the weights' corrections.
    FLASHOPTIM_OPTION(Format, format) { Format::kNative };
    /// Bits of the master weight over 16-bit weights: 16, 24 or 32; 0: none, round to nearest.
    FLASHOPTIM_OPTION(int, master_weight_bits) { 24 };
    /// false keeps the moments in fp32 whatever the format.
    FLASHOPTIM_OPTION(bool, quantize) { true };
    /// What a gradient that is NaN, infinite or huge does.
    FLASHOPTIM_OPTION(NonFinite, nonfinite) { NonFinite::kSkipElement };
    /// Format::kPaper only: false takes such gradients as they are.
    FLASHOPTIM_OPTION(bool, check_gradients) { true };
    /// Format::kNative keeps the moments of smaller tensors in fp32; the second holds for one-dimensional tensors.
    FLASHOPTIM_OPTION(std::int64_t, min_quantized_numel) { kDefaultMinQuantizedNumel };
    FLASHOPTIM_OPTION(std::int64_t, min_quantized_numel_1d) { kDefaultMinQuantizedNumel1d };

public:
    [[nodiscard]] double get_lr() const override { return lr(); }
    void set_lr(double value) override { lr_.value = value; }
    /// @throws FormatError for a key that is missing or of another type.
    void serialize(torch::serialize::InputArchive& archive) override;
    void serialize(torch::serialize::OutputArchive& archive) const override;
    [[nodiscard]] std::unique_ptr<torch::optim::OptimizerOptions> clone() const override;
    bool operator==(const CommonOptions& other) const;

    [[nodiscard]] Hyperparameters hyperparameters() const override;
    [[nodiscard]] StorageOptions storage() const override;
    [[nodiscard]] NonFinite nonfinite_policy() const override { return nonfinite(); }
    [[nodiscard]] bool checks_gradients() const override { return check_gradients(); }
    void inherit(const torch::optim::OptimizerOptions& defaults) override;
    void remember_first_learning_rate() override;
    [[nodiscard]] std::vector<std::pair<std::string, c10::IValue>> values() const override;
    void set_values(const std::function<std::optional<c10::IValue>(const std::string& name)>& read) override;

private:
    friend struct OptionFields;
};

using Betas = std::tuple<double, double>;

// Constructors from a learning rate are implicit, as LibTorch's: `AdamW optimizer(parameters, 1e-3)`.

/// SGD with an L2 term in the gradient, as torch::optim::SGD.
class SGDOptions final : public CommonOptions<SGDOptions> {
public:
    SGDOptions() : CommonOptions(1e-3, 0.0) {}
    SGDOptions(double learning_rate) : SGDOptions() { lr(learning_rate); }
    FLASHOPTIM_OPTION(double, momentum) { 0.0 };
    FLASHOPTIM_OPTION(double, dampening) { 0.0 };
    FLASHOPTIM_OPTION(bool, nesterov) { false };
    friend struct OptionFields;
};

/// SGD whose weights decay apart from the gradient.
class SGDWOptions final : public CommonOptions<SGDWOptions> {
public:
    SGDWOptions() : CommonOptions(1e-3, 0.0) {}
    SGDWOptions(double learning_rate) : SGDWOptions() { lr(learning_rate); }
    FLASHOPTIM_OPTION(double, momentum) { 0.0 };
    FLASHOPTIM_OPTION(double, dampening) { 0.0 };
    FLASHOPTIM_OPTION(bool, nesterov) { false };
    /// Weights decay by weight_decay * lr / initial_lr in a step, instead of weight_decay * lr.
    FLASHOPTIM_OPTION(bool, decouple_lr) { false };
    /// 0: the learning rate with which the group was added. Where that is 0 (a warm-up), set the schedule's peak here:
    /// decay that is decoupled from it is refused otherwise.
    FLASHOPTIM_OPTION(double, initial_lr) { 0.0 };
    friend struct OptionFields;
};

/// Adam with an L2 term in the gradient, as torch::optim::Adam.
class AdamOptions final : public CommonOptions<AdamOptions> {
public:
    AdamOptions() : CommonOptions(1e-3, 0.0) {}
    AdamOptions(double learning_rate) : AdamOptions() { lr(learning_rate); }
    FLASHOPTIM_OPTION(Betas, betas) { Betas(0.9, 0.999) };
    FLASHOPTIM_OPTION(double, eps) { 1e-8 };
    friend struct OptionFields;
};

/// Adam whose weights decay apart from the gradient, as torch::optim::AdamW.
class AdamWOptions final : public CommonOptions<AdamWOptions> {
public:
    AdamWOptions() : CommonOptions(1e-3, 1e-2) {}
    AdamWOptions(double learning_rate) : AdamWOptions() { lr(learning_rate); }
    FLASHOPTIM_OPTION(Betas, betas) { Betas(0.9, 0.999) };
    FLASHOPTIM_OPTION(double, eps) { 1e-8 };
    /// Weights decay by weight_decay * lr / initial_lr in a step, instead of weight_decay * lr.
    FLASHOPTIM_OPTION(bool, decouple_lr) { false };
    /// 0: the learning rate with which the group was added. Where that is 0 (a warm-up), set the schedule's peak here:
    /// decay that is decoupled from it is refused otherwise.
    FLASHOPTIM_OPTION(double, initial_lr) { 0.0 };
    friend struct OptionFields;
};

/// The sign of an interpolated gradient (arXiv 2302.06675); weights decay apart from the gradient.
class LionOptions final : public CommonOptions<LionOptions> {
public:
    LionOptions() : CommonOptions(1e-4, 0.0) {}
    LionOptions(double learning_rate) : LionOptions() { lr(learning_rate); }
    FLASHOPTIM_OPTION(Betas, betas) { Betas(0.9, 0.99) };
    /// Weights decay by weight_decay * lr / initial_lr in a step, instead of weight_decay * lr.
    FLASHOPTIM_OPTION(bool, decouple_lr) { false };
    /// 0: the learning rate with which the group was added. Where that is 0 (a warm-up), set the schedule's peak here:
    /// decay that is decoupled from it is refused otherwise.
    FLASHOPTIM_OPTION(double, initial_lr) { 0.0 };
    friend struct OptionFields;
};

#undef FLASHOPTIM_OPTION

extern template class CommonOptions<SGDOptions>;
extern template class CommonOptions<SGDWOptions>;
extern template class CommonOptions<AdamOptions>;
extern template class CommonOptions<AdamWOptions>;
extern template class CommonOptions<LionOptions>;

/// What an optimizer keeps of one parameter. Tensors that its storage does not have are undefined. Tensors of elements have
/// the parameter's shape and strides; scales have the shape (rows, groups in a row), in the paper's format (groups).
class FlashParamState : public torch::optim::OptimizerParamState {
    TORCH_ARG(std::int64_t, step) = 0;
    /// Elements that were skipped because their gradient was not finite or huge.
    TORCH_ARG(std::int64_t, bad_elements) = 0;
    /// SGD: whether the momentum buffer has been filled.
    TORCH_ARG(bool, has_momentum) = false;
    /// Corrections of 16-bit weights.
    TORCH_ARG(torch::Tensor, error_bits);
    TORCH_ARG(torch::Tensor, first_moment);
    TORCH_ARG(torch::Tensor, first_moment_scales);
    TORCH_ARG(torch::Tensor, second_moment);
    TORCH_ARG(torch::Tensor, second_moment_scales);

public:
    /// The name of the first moment in files: "exp_avg" or "momentum_buffer"; scales append "_scales".
    [[nodiscard]] virtual std::string first_moment_name() const { return "exp_avg"; }
    /// The tensors that are defined, under their names in files.
    [[nodiscard]] std::vector<std::pair<std::string, torch::Tensor>> tensors() const;
    void serialize(torch::serialize::InputArchive& archive) override;
    void serialize(torch::serialize::OutputArchive& archive) const override;
};

class SGDParamState : public FlashParamState {
public:
    [[nodiscard]] std::string first_moment_name() const override { return "momentum_buffer"; }
    [[nodiscard]] const torch::Tensor& momentum_buffer() const { return first_moment(); }
    [[nodiscard]] std::unique_ptr<OptimizerParamState> clone() const override {
        return std::make_unique<SGDParamState>(*this);
    }
};
class SGDWParamState final : public SGDParamState {
public:
    [[nodiscard]] std::unique_ptr<OptimizerParamState> clone() const override {
        return std::make_unique<SGDWParamState>(*this);
    }
};
class AdamParamState : public FlashParamState {
public:
    [[nodiscard]] const torch::Tensor& exp_avg() const { return first_moment(); }
    [[nodiscard]] const torch::Tensor& exp_avg_sq() const { return second_moment(); }
    [[nodiscard]] std::unique_ptr<OptimizerParamState> clone() const override {
        return std::make_unique<AdamParamState>(*this);
    }
};
class AdamWParamState final : public AdamParamState {
public:
    [[nodiscard]] std::unique_ptr<OptimizerParamState> clone() const override {
        return std::make_unique<AdamWParamState>(*this);
    }
};
class LionParamState final : public FlashParamState {
public:
    [[nodiscard]] const torch::Tensor& exp_avg() const { return first_moment(); }
    [[nodiscard]] std::unique_ptr<OptimizerParamState> clone() const override {
        return std::make_unique<LionParamState>(*this);
    }
};

struct OptimizerImpl;

/// Base of the optimizers: a torch::optim::Optimizer over flashoptim::step.
///
/// Parameters are leaf tensors on the CPU, or on CUDA devices where the library was built with CUDA, of float32, bfloat16 or
/// float16, dense in any stride order and at a multiple of their elements' size. Everything that takes a parameter takes the very
/// tensor that is in a parameter group and throws InvalidArgument for another one. A state is made on the parameter's device when it
/// has its first gradient. A parameter that is taken out of its group loses its state.
///
/// Full-precision weights survive what is done to parameters between steps: a clamp, a mask, an exchange with an average,
/// set_data(), a module that is loaded. Each keeps the correction, which moves the full-precision weight by at most half a unit in
/// the last place of the stored one. Where dtype, strides or device have changed (Module::to) the next step or other use of the
/// state converts it; only the shape must not change. Only what gives full-precision weights replaces corrections: set_master,
/// refresh_masters, load_state_tensors and load. So a module and its optimizer may be loaded in either order.
///
/// Errors are flashoptim::Error, std::bad_alloc, and those of torch and of closures. After one nothing has changed: no parameter, no
/// state, no option (under NonFinite::kError bad elements are counted; of parameters on several devices those of each device are
/// stepped together or not at all).
///
/// Thread-safety: one optimizer serves one thread at a time (with GradientRelease: any number of backward passes); different
/// optimizers may be used in different threads at once.
class FlashOptimizer : public torch::optim::Optimizer {
public:
    ~FlashOptimizer() override;
    FlashOptimizer(FlashOptimizer&&) noexcept;
    FlashOptimizer& operator=(FlashOptimizer&&) noexcept;

    [[nodiscard]] Rule rule() const;

    /// Adds a group; options that it did not set are those of defaults(). (LibTorch 2.13's own function forgets the options of
    /// groups whose type is not LibTorch's.) @throws InvalidArgument for a parameter or option that cannot be; it is named.
    void add_param_group(const torch::optim::OptimizerParamGroup& group);

    /// Evaluates the closure, if there is one, and steps every parameter that has a gradient.
    /// @return the closure's loss
    /// @throws InvalidArgument for a gradient that is sparse, of another shape, of a dtype other than float32, bfloat16 and
    ///         float16 or on another device, or while a CUDA graph is captured, whose replays would repeat one step count;
    ///         NonFiniteError under NonFinite::kError.
    torch::Tensor step(LossClosure closure = nullptr) override;
    /// What the last step() did. Elements that it skipped on CUDA under NonFinite::kSkipElement are not waited for and are 0
    /// here; bad_elements() has them. Nor does it say that found_inf kept back a step on CUDA that did not wait. Under
    /// GradientRelease, where each parameter is a step: what the last one of them did; bad_elements() has the sums.
    [[nodiscard]] const StepReport& last_step() const;
    /// Clears gradients, also those of set_gradient. (Not virtual in LibTorch: called through a torch::optim::Optimizer& it
    /// clears only the parameters' own.)
    void zero_grad(bool set_to_none = true);

    /// Gives a gradient instead of parameter.grad(), for one in another dtype (fp32 sums for bf16 parameters). The tensor is
    /// kept, not copied, and read by each step until zero_grad(); an undefined tensor takes it back.
    /// @throws InvalidArgument as step(), and under GradientRelease, which steps by parameter.grad() only.
    void set_gradient(const torch::Tensor& parameter, const torch::Tensor& gradient);
    /// Multiplies every gradient as it is read: 1 / loss scale times clip coefficient. 1 at first. Must be finite.
    void set_gradient_factor(double factor);
    /// Loss scale: gradients are also multiplied by 1 / scale, as fp32, from now on. The tensor has one float32 element, on any
    /// device, and is read when a step runs, so that nobody waits for one beside the parameters (the host does for parameters on
    /// the CPU). It is kept, not copied; an undefined tensor takes it back.
    /// @throws InvalidArgument for another dtype or number of elements.
    void set_grad_scale(const torch::Tensor& scale);
    /// The same kind of tensor: where it is not 0 when a step runs, nothing is stepped and nothing counted, as where torch's
    /// GradScaler finds an infinity. Steps of parameters on CUDA are then counted there, and their state has the count only after
    /// step_count(), has_momentum(), bad_elements() or save(), which wait.
    void set_found_inf(const torch::Tensor& found_inf);
    /// Norm of all gradients times the factor and 1 / grad scale; bad elements are left out. The same bits with any number of
    /// threads. Waits for gradients on CUDA.
    [[nodiscard]] double grad_norm();
    /// The same as a float64 tensor on the device of the gradients (on the CPU if some are there), for which nobody waits.
    /// The next step() also multiplies gradients by min(1, max_norm / (norm + 1e-6)), as torch's clip_grad_norm_ does;
    /// zero_grad() takes it back.
    /// @throws InvalidArgument for a norm that is negative or NaN, and under GradientRelease.
    torch::Tensor clip_grad_norm(double max_norm);

    /// Threads of a step. Until they are set: those that at::get_num_threads() says at each step, which all such optimizers share.
    /// Results do not depend on them.
    void set_threads(int threads);
    [[nodiscard]] int threads() const;

    /// Bytes that weights, states and gradients take at this moment.
    [[nodiscard]] MemoryReport memory_report() const;
    /// Elements of a parameter (of all) whose gradient was not finite or huge; counted also where it kept a whole step back. Waits
    /// for the steps on CUDA, whose counts the parameter's state has only then.
    [[nodiscard]] std::int64_t bad_elements(const torch::Tensor& parameter) const;
    [[nodiscard]] std::int64_t bad_elements() const;

    /// Full-precision weights: a new fp32 tensor of the parameter's shape and strides.
    [[nodiscard]] torch::Tensor master(const torch::Tensor& parameter);
    /// Writes full-precision weights: the parameter and its correction.
    void set_master(const torch::Tensor& parameter, const torch::Tensor& values);
    /// Takes what a parameter holds now (all parameters hold) for the full-precision weight: clears its correction.
    void refresh_masters(const torch::Tensor& parameter);
    void refresh_masters();

    /// The state of a parameter for checkpoints: name and tensor, sharing memory with the optimizer. Empty before the first
    /// step and for rules that keep none. Names: "error_bits", "exp_avg", "exp_avg_scales", "exp_avg_sq",
    /// "exp_avg_sq_scales", "momentum_buffer", "momentum_buffer_scales".
    [[nodiscard]] std::vector<std::pair<std::string, torch::Tensor>> state_tensors(
        const torch::Tensor& parameter);
    /// Replaces it by copies of `tensors`; an empty map by the state before the first step. Also sets has_momentum if there is
    /// a momentum buffer. Step counts are set apart.
    /// @param saved_strides  strides of the parameter when the state was saved, if they were others: then the first use of the
    ///                       state decodes its moments and encodes them again
    /// @throws FormatError for a name that is missing or unknown, another dtype or shape, or values that no step writes.
    void load_state_tensors(const torch::Tensor& parameter,
                            const std::map<std::string, torch::Tensor>& tensors,
                            at::IntArrayRef saved_strides = {});
    /// Steps that a parameter has made.
    [[nodiscard]] std::int64_t step_count(const torch::Tensor& parameter) const;
    void set_step_count(const torch::Tensor& parameter, std::int64_t steps);
    void set_bad_elements(const torch::Tensor& parameter, std::int64_t elements);
    /// SGD: whether the momentum buffer has been filled.
    [[nodiscard]] bool has_momentum(const torch::Tensor& parameter) const;
    void set_has_momentum(const torch::Tensor& parameter, bool has);

    /// Options of all groups and states of all parameters, by position: equal states give equal archives. The work grows with
    /// the number of parameters.
    void save(torch::serialize::OutputArchive& archive) const override;
    /// A state of another dtype or memory order than its parameter has now is converted at its first use: before or after load()
    /// the module may be loaded that it belongs to.
    /// @throws FormatError for an archive of another optimizer, of other groups or shapes, or one that is damaged.
    void load(torch::serialize::InputArchive& archive) override;

protected:
    FlashOptimizer(Rule rule, std::unique_ptr<FlashOptions> defaults,
                   const std::vector<torch::optim::OptimizerParamGroup>& groups);

private:
    friend class GradientRelease;
    friend struct OptimizerImpl;
    std::unique_ptr<OptimizerImpl> impl_;
};

class SGD final : public FlashOptimizer {
public:
    explicit SGD(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                 const SGDOptions& defaults = {})
        : FlashOptimizer(Rule::kSGD, std::make_unique<SGDOptions>(defaults), groups) {}
    explicit SGD(std::vector<torch::Tensor> parameters, const SGDOptions& defaults = {})
        : SGD({torch::optim::OptimizerParamGroup(std::move(parameters))}, defaults) {}
};
class SGDW final : public FlashOptimizer {
public:
    explicit SGDW(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                  const SGDWOptions& defaults = {})
        : FlashOptimizer(Rule::kSGDW, std::make_unique<SGDWOptions>(defaults), groups) {}
    explicit SGDW(std::vector<torch::Tensor> parameters, const SGDWOptions& defaults = {})
        : SGDW({torch::optim::OptimizerParamGroup(std::move(parameters))}, defaults) {}
};
class Adam final : public FlashOptimizer {
public:
    explicit Adam(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                  const AdamOptions& defaults = {})
        : FlashOptimizer(Rule::kAdam, std::make_unique<AdamOptions>(defaults), groups) {}
    explicit Adam(std::vector<torch::Tensor> parameters, const AdamOptions& defaults = {})
        : Adam({torch::optim::OptimizerParamGroup(std::move(parameters))}, defaults) {}
};
class AdamW final : public FlashOptimizer {
public:
    explicit AdamW(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                   const AdamWOptions& defaults = {})
        : FlashOptimizer(Rule::kAdamW, std::make_unique<AdamWOptions>(defaults), groups) {}
    explicit AdamW(std::vector<torch::Tensor> parameters, const AdamWOptions& defaults = {})
        : AdamW({torch::optim::OptimizerParamGroup(std::move(parameters))}, defaults) {}
};
class Lion final : public FlashOptimizer {
public:
    explicit Lion(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                  const LionOptions& defaults = {})
        : FlashOptimizer(Rule::kLion, std::make_unique<LionOptions>(defaults), groups) {}
    explicit Lion(std::vector<torch::Tensor> parameters, const LionOptions& defaults = {})
        : Lion({torch::optim::OptimizerParamGroup(std::move(parameters))}, defaults) {}
};

struct ReleaseControl;

/// Steps each parameter inside backward(), as soon as its gradient is complete, and frees the gradient at once: gradients of
/// the whole model never exist together. A parameter used in several places is stepped once, after its last contribution.
///
/// While it lives step() and zero_grad() of the optimizer do nothing and say so once; but parameters that were put into a group's list
/// after it was made have no hook: step() steps them, one by one, and zero_grad() clears their gradients. Each backward() is a step
/// (so no accumulation over several, and no clipping by the norm of all gradients), and NonFinite::kSkipStep and kError hold per
/// parameter; errors come out of backward(). The optimizer may be moved or destroyed meanwhile; the handle must not be
/// destroyed or moved during a backward(). Backward passes in several threads take turns.
///
///     flashoptim::libtorch::AdamW optimizer(model->parameters(), {1e-3});
///     flashoptim::libtorch::GradientRelease release(optimizer);
///     for (auto& batch : *loader) loss_of(model, batch).backward();  // steps
class GradientRelease {
public:
    /// @throws InvalidArgument if the optimizer has such a handle already, or a parameter another post-accumulate hook or a
    ///         gradient (backward() would add to it: call zero_grad() first).
    explicit GradientRelease(FlashOptimizer& optimizer);
    ~GradientRelease();
    GradientRelease(GradientRelease&&) noexcept;
    GradientRelease& operator=(GradientRelease&&) noexcept;

    /// Removes the hooks and restores step() and zero_grad(), as the destructor does.
    void remove() noexcept;

private:
    std::shared_ptr<ReleaseControl> control_;
};

struct CastOptions {
    /// Names of modules, parameters or buffers to leave as they are, dotted as named_parameters() gives them; `*` stands for
    /// any characters. A module's name keeps everything in it. Buffers that 16 bits do not hold belong here: rotary
    /// frequencies, averages, schedules. (LibTorch's buffers are all saved, and so are all cast.)
    std::vector<std::string> keep;
};

/// Casts floating-point parameters and buffers (and gradients) of a model in place, before an optimizer is made of it. Integers,
/// complex numbers and floating-point types of 8 bits stay. Tensors that share memory (ties, views, transposed ties) have their
/// shapes and strides and share memory afterwards; if one of them is kept, all of them are. A model on `meta` is cast, too.
/// Layers with running statistics (BatchNorm, InstanceNorm that tracks them: whatever has a buffer "running_mean") keep
/// theirs: their statistics would stall in 16 bits, and LibTorch's normalisation takes 16-bit input beside fp32 weights.
/// @throws InvalidArgument for a dtype other than float32, bfloat16 and float16, a name in `keep` that matches nothing, or a
///         tensor that was made in inference mode; nothing has changed.
void cast_model(torch::nn::Module& model, torch::Dtype dtype = torch::kBFloat16,
                const CastOptions& options = {});

}  // namespace flashoptim::libtorch

#endif
