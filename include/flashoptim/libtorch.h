// LibTorch optimizers, one class per rule, with gradient release and casting of models. The core does all
// arithmetic.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "flashoptim/libtorch_optimizer.h"

namespace flashoptim::libtorch {

/// An option in the style of TORCH_ARG: `options.name(value)` sets it and returns the options,
/// `options.name()` reads it. `where` is the member that holds its value.
#define FLASHOPTIM_OPTION(T, name, where)                          \
    Self& name(const T& value) {                                   \
        (where) = value;                                           \
        return set(#name);                                         \
    }                                                              \
    [[nodiscard]] const T& name() const noexcept { return where; } \
    [[nodiscard]] T& name() noexcept { return where; }

/// The options that all rules share; `Self` is the rule's own options class.
template <class Self_>
class CommonOptions : public FlashOptions {
protected:
    using Self = Self_;
    explicit CommonOptions(Rule rule) : FlashOptions(rule) {}
    Self& set(std::string_view name) {
        set_.push_back(name);
        return static_cast<Self&>(*this);
    }

public:
    FLASHOPTIM_OPTION(double, lr, hyperparameters_.learning_rate)
    FLASHOPTIM_OPTION(double, weight_decay, hyperparameters_.weight_decay)
    FLASHOPTIM_OPTION(bool, maximize, hyperparameters_.maximize)
    /// Number format of the moments and of the weights' corrections.
    FLASHOPTIM_OPTION(Format, format, storage_.format)
    /// Bits of the master weight over 16-bit weights: 16, 24 or 32; 0: none, round to nearest.
    FLASHOPTIM_OPTION(int, master_weight_bits, storage_.master_weight_bits)
    /// false keeps the moments in fp32 whatever the format.
    FLASHOPTIM_OPTION(bool, quantize, storage_.quantize)
    /// What a step does with a bad gradient: NaN, Inf or a magnitude of at least 2^48.
    FLASHOPTIM_OPTION(NonFinite, nonfinite, nonfinite_)
    /// Format::kPaper only: false uses bad gradients as they are.
    FLASHOPTIM_OPTION(bool, check_gradients, check_gradients_)
    /// Format::kNative keeps the moments of smaller tensors in fp32; the second holds for one-dimensional
    /// tensors.
    FLASHOPTIM_OPTION(std::int64_t, min_quantized_numel, storage_.min_quantized_numel)
    FLASHOPTIM_OPTION(std::int64_t, min_quantized_numel_1d, storage_.min_quantized_numel_1d)

    [[nodiscard]] std::unique_ptr<torch::optim::OptimizerOptions> clone() const override {
        return std::make_unique<Self>(static_cast<const Self&>(*this));
    }
};

/// Options of a rule that is known only when the program runs.
class AnyOptions final : public CommonOptions<AnyOptions> {
public:
    /// With the defaults of the rule. @throws InvalidArgument for a rule that does not exist.
    explicit AnyOptions(Rule rule);
    /// With these hyperparameters; those that the rule does not read keep their defaults.
    /// @throws InvalidArgument for a rule that does not exist.
    AnyOptions(Rule rule, const Hyperparameters& hyperparameters);
};

using Betas = std::tuple<double, double>;

/// The options of SGD with momentum.
template <class Self_>
class MomentumOptions : public CommonOptions<Self_> {
protected:
    using Self = Self_;
    using CommonOptions<Self_>::CommonOptions, CommonOptions<Self_>::set,
        CommonOptions<Self_>::hyperparameters_;

public:
    FLASHOPTIM_OPTION(double, momentum, hyperparameters_.momentum)
    FLASHOPTIM_OPTION(double, dampening, hyperparameters_.dampening)
    FLASHOPTIM_OPTION(bool, nesterov, hyperparameters_.nesterov)
};
/// The options of rules with two betas.
template <class Self_>
class BetasOptions : public CommonOptions<Self_> {
protected:
    using Self = Self_;
    using CommonOptions<Self_>::CommonOptions, CommonOptions<Self_>::set,
        CommonOptions<Self_>::hyperparameters_;

public:
    /// Sets both betas.
    Self& betas(const Betas& value) {
        betas() = value;
        return set("betas");
    }
    /// Both betas.
    [[nodiscard]] Betas betas() const { return {hyperparameters_.beta1, hyperparameters_.beta2}; }
    /// References: what is assigned to them changes the options.
    [[nodiscard]] std::tuple<double&, double&> betas() {
        return {hyperparameters_.beta1, hyperparameters_.beta2};
    }
};
/// The options of rules with three betas.
template <class Self_>
class ThreeBetasOptions : public CommonOptions<Self_> {
protected:
    using Self = Self_;
    using CommonOptions<Self_>::CommonOptions, CommonOptions<Self_>::set,
        CommonOptions<Self_>::hyperparameters_;

public:
    /// Sets the three betas.
    Self& betas(const std::tuple<double, double, double>& value) {
        betas() = value;
        return set("betas");
    }
    /// The three betas.
    [[nodiscard]] std::tuple<double, double, double> betas() const {
        return {hyperparameters_.beta1, hyperparameters_.beta2, hyperparameters_.beta3};
    }
    /// References: what is assigned to them changes the options.
    [[nodiscard]] std::tuple<double&, double&, double&> betas() {
        return {hyperparameters_.beta1, hyperparameters_.beta2, hyperparameters_.beta3};
    }
};
/// The options of weight decay that is relative to the first learning rate.
#define FLASHOPTIM_DECOUPLED_DECAY                                                                           \
    /** Weights decay by weight_decay * lr / initial_lr in a step, instead of weight_decay * lr. */          \
    FLASHOPTIM_OPTION(bool, decouple_lr, hyperparameters_.fully_decoupled)                                   \
    /** 0: the learning rate with which the group was added. Where that is 0 (a warm-up), set the          \
        schedule's peak here: decay that is decoupled from it is refused otherwise. */ \
    FLASHOPTIM_OPTION(double, initial_lr, hyperparameters_.initial_learning_rate)

// Constructors from a learning rate are implicit, as LibTorch's: `AdamW optimizer(parameters, 1e-3)`.

/// SGD with an L2 term in the gradient, as torch::optim::SGD.
class SGDOptions final : public MomentumOptions<SGDOptions> {
public:
    SGDOptions() : MomentumOptions(Rule::kSGD) {}
    SGDOptions(double learning_rate) : SGDOptions() { lr(learning_rate); }
};

/// SGD with decoupled weight decay.
class SGDWOptions final : public MomentumOptions<SGDWOptions> {
public:
    SGDWOptions() : MomentumOptions(Rule::kSGDW) {}
    SGDWOptions(double learning_rate) : SGDWOptions() { lr(learning_rate); }
    FLASHOPTIM_DECOUPLED_DECAY
};

/// Adam with an L2 term in the gradient, as torch::optim::Adam.
class AdamOptions final : public BetasOptions<AdamOptions> {
public:
    AdamOptions() : BetasOptions(Rule::kAdam) {}
    AdamOptions(double learning_rate) : AdamOptions() { lr(learning_rate); }
    FLASHOPTIM_OPTION(double, eps, hyperparameters_.epsilon)
};

/// Adam with decoupled weight decay, as torch::optim::AdamW.
class AdamWOptions final : public BetasOptions<AdamWOptions> {
public:
    AdamWOptions() : BetasOptions(Rule::kAdamW) {}
    AdamWOptions(double learning_rate) : AdamWOptions() { lr(learning_rate); }
    FLASHOPTIM_OPTION(double, eps, hyperparameters_.epsilon)
    FLASHOPTIM_DECOUPLED_DECAY
};

/// Lion: the sign of an interpolated momentum (arXiv 2302.06675), with decoupled weight decay.
class LionOptions final : public BetasOptions<LionOptions> {
public:
    LionOptions() : BetasOptions(Rule::kLion) {}
    LionOptions(double learning_rate) : LionOptions() { lr(learning_rate); }
    FLASHOPTIM_DECOUPLED_DECAY
};

/// AdamW with a second, slower mean of the gradients (arXiv 2409.03137). The betas are those of the fast
/// mean, of the second moment and of the slow mean.
class AdEMAMixOptions final : public ThreeBetasOptions<AdEMAMixOptions> {
public:
    AdEMAMixOptions() : ThreeBetasOptions(Rule::kAdEMAMix) {}
    AdEMAMixOptions(double learning_rate) : AdEMAMixOptions() { lr(learning_rate); }
    FLASHOPTIM_OPTION(double, eps, hyperparameters_.epsilon)
    /// Weight of the slow mean.
    FLASHOPTIM_OPTION(double, alpha, hyperparameters_.alpha)
    /// Steps in which alpha grows from 0, and beta3 from beta1; 0: none.
    FLASHOPTIM_OPTION(double, alpha_warmup, hyperparameters_.alpha_warmup)
    FLASHOPTIM_OPTION(double, beta3_warmup, hyperparameters_.beta3_warmup)
    FLASHOPTIM_DECOUPLED_DECAY
};

/// Nesterov momentum from the difference to the last gradient (arXiv 2208.06677). The betas are those of the
/// gradients, of their differences and of the squares.
class AdanOptions final : public ThreeBetasOptions<AdanOptions> {
public:
    AdanOptions() : ThreeBetasOptions(Rule::kAdan) {}
    AdanOptions(double learning_rate) : AdanOptions() { lr(learning_rate); }
    FLASHOPTIM_OPTION(double, eps, hyperparameters_.epsilon)
    /// Decay multiplies the old weight instead of dividing the new one.
    FLASHOPTIM_OPTION(bool, no_prox, hyperparameters_.no_prox)
    FLASHOPTIM_DECOUPLED_DECAY
};

#undef FLASHOPTIM_DECOUPLED_DECAY
#undef FLASHOPTIM_OPTION

/// An optimizer of one rule, whose options are of one class.
template <Rule kRule, class Options>
class FlashOptimizerOf : public FlashOptimizer {
public:
    /// Options that a group did not set are those of `defaults`. @throws as add_param_group()
    explicit FlashOptimizerOf(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                              const Options& defaults = {})
        : FlashOptimizer(kRule, std::make_unique<Options>(defaults), groups) {}
    explicit FlashOptimizerOf(std::vector<torch::Tensor> parameters, const Options& defaults = {})
        : FlashOptimizerOf({torch::optim::OptimizerParamGroup(std::move(parameters))}, defaults) {}
};

class SGD final : public FlashOptimizerOf<Rule::kSGD, SGDOptions> {
public:
    using FlashOptimizerOf::FlashOptimizerOf;
};
class SGDW final : public FlashOptimizerOf<Rule::kSGDW, SGDWOptions> {
public:
    using FlashOptimizerOf::FlashOptimizerOf;
};
class Adam final : public FlashOptimizerOf<Rule::kAdam, AdamOptions> {
public:
    using FlashOptimizerOf::FlashOptimizerOf;
};
class AdamW final : public FlashOptimizerOf<Rule::kAdamW, AdamWOptions> {
public:
    using FlashOptimizerOf::FlashOptimizerOf;
};
class Lion final : public FlashOptimizerOf<Rule::kLion, LionOptions> {
public:
    using FlashOptimizerOf::FlashOptimizerOf;
};
class AdEMAMix final : public FlashOptimizerOf<Rule::kAdEMAMix, AdEMAMixOptions> {
public:
    using FlashOptimizerOf::FlashOptimizerOf;
};
class Adan final : public FlashOptimizerOf<Rule::kAdan, AdanOptions> {
public:
    using FlashOptimizerOf::FlashOptimizerOf;
};

/// An optimizer whose rule is known only when the program runs.
class AnyOptimizer final : public FlashOptimizer {
public:
    explicit AnyOptimizer(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                          const AnyOptions& defaults)
        : FlashOptimizer(defaults.rule(), std::make_unique<AnyOptions>(defaults), groups) {}
};

struct ReleaseControl;

/// Steps each parameter inside backward() as soon as its gradient is complete, and frees that gradient at
/// once. So the gradients of the whole model never exist together. A parameter that is used in several places
/// is stepped once, after its last contribution.
///
/// While the handle lives, step() and zero_grad() of the optimizer do nothing and say so once. Parameters
/// that were put into a group's list later have no hook: step() steps them and zero_grad() clears their
/// gradients. Each backward() is a step. So gradients cannot be accumulated over several, nor clipped by the
/// norm of all gradients, and NonFinite::kSkipStep and kError hold per parameter. Errors come out of
/// backward(). The optimizer may be moved or destroyed while the handle lives. The handle must not be moved
/// or destroyed during a backward(). Backward passes in several threads take turns.
///
///     flashoptim::libtorch::AdamW optimizer(model->parameters(), {1e-3});
///     flashoptim::libtorch::GradientRelease release(optimizer);
///     for (auto& batch : *loader) loss_of(model, batch).backward();  // steps
class GradientRelease {
public:
    /// Installs a hook on each parameter of the optimizer.
    /// @throws InvalidArgument if the optimizer has a handle already, or a parameter has another
    ///         post-accumulate hook or a gradient, to which backward() would add (call zero_grad() first).
    explicit GradientRelease(FlashOptimizer& optimizer);
    ~GradientRelease();
    GradientRelease(GradientRelease&&) noexcept;
    GradientRelease& operator=(GradientRelease&&) noexcept;

    /// Removes the hooks and restores step() and zero_grad(), as the destructor does.
    void remove() noexcept;

private:
    std::shared_ptr<ReleaseControl> control_;
};

/// Options of cast_model().
struct CastOptions {
    /// Names of modules, parameters or buffers to leave as they are, with dots as in named_parameters(). `*`
    /// matches any characters. A module's name keeps everything in it. Buffers that need more than 16 bits
    /// belong here: rotary frequencies, averages, schedules. (LibTorch saves all buffers, so all are cast.)
    std::vector<std::string> keep;
};

/// Casts floating-point parameters, buffers and gradients of a model in place. Call it before making an
/// optimizer. Integers, complex numbers and floating-point types of 8 bits stay. Tensors that share memory
/// (ties, views, transposed ties) keep their shapes and strides and share memory afterwards; if one of them
/// is kept, all are. A model on `meta` may be cast. Layers with running statistics (a buffer "running_mean",
/// as BatchNorm has) are kept: the statistics would stop moving in 16 bits, and LibTorch's normalisation
/// takes 16-bit input beside fp32 weights.
/// @throws InvalidArgument for a dtype other than float32, bfloat16 and float16, a name in `keep` that
///         matches nothing, or a tensor that was made in inference mode; nothing has changed.
void cast_model(torch::nn::Module& model, torch::Dtype dtype = torch::kBFloat16,
                const CastOptions& options = {});

}  // namespace flashoptim::libtorch

#endif
