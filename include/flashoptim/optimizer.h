// The framework-free optimizers. They own their state; weights and gradients stay in the caller's memory.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashoptim/device.h"
#include "flashoptim/error.h"
#include "flashoptim/step.h"
#include "flashoptim/tensor_view.h"

namespace flashoptim {

/// Options that hold for all parameters of an optimizer.
struct OptimizerOptions {
    /// How weights and moments are stored.
    StorageOptions storage;
    /// What a step does with bad gradients.
    NonFinite nonfinite = NonFinite::kSkipElement;
    /// false uses NaN and Inf gradients as they are, as the authors' code does. Paper format only.
    bool check_gradients = true;
    /// The most threads of a step. 0: the number of usable CPUs (ThreadPool).
    int threads = 0;
    /// Instruction set of a step on the host.
    Backend backend = Backend::kAutomatic;
    /// Null: host memory. Otherwise weights and gradients lie in memory of this device; state is allocated
    /// and steps run there (cuda_device.h), and `threads` and `backend` have no effect. Optimizers may share
    /// a device.
    std::shared_ptr<Device> device;
};

/// The memory of an optimizer in bytes, by kind.
struct MemoryReport {
    std::size_t weights = 0;      ///< stored weights
    std::size_t corrections = 0;  ///< what the master weights have beyond the stored weights
    std::size_t moments = 0;      ///< codes, or fp32 moments
    std::size_t scales = 0;       ///< scales of the codes
    std::size_t gradients = 0;    ///< gradients that are set
    std::int64_t parameters = 0;  ///< number of elements
    /// The sum of all kinds.
    [[nodiscard]] std::size_t total() const { return weights + corrections + moments + scales + gradients; }
};

/// What a step did.
struct StepReport {
    /// Bad elements of all parameters. On a device under NonFinite::kSkipElement this is 0, because the step
    /// does not block; Optimizer::bad_elements counts them.
    std::uint64_t bad_elements = 0;
    /// Whether nothing changed: NonFinite::kSkipStep found a bad gradient, or found_inf was set. On a device
    /// under NonFinite::kSkipElement this is false whatever found_inf is.
    bool skipped = false;
};

/// One buffer of a parameter, for saving and loading. The bytes are those that the optimizer computes with.
struct StateTensor {
    /// "error_bits", or a moment ("exp_avg", "momentum_buffer", ...), with "_scales" appended for its scales.
    std::string name;
    DType dtype;                        ///< element type
    std::vector<std::int64_t> shape;    ///< the weight's shape; of scales their number
    std::span<std::byte> bytes;         ///< the elements in the weight's memory order
    std::shared_ptr<std::byte[]> copy;  ///< owns `bytes` if they are a copy of device memory; else null
};

/// The saved state of one parameter. The bytes are borrowed.
struct SavedState {
    std::size_t parameter = 0;  ///< Optimizer::ParameterId
    std::int64_t steps = 0;     ///< step count
    bool has_momentum = false;  ///< SGD, Adan: whether momentum buffer or last gradient is filled
    /// Buffers by the names of state() and stored_weight(), with the bytes that these return. A buffer that
    /// is not named stays as it is.
    std::vector<std::pair<std::string_view, std::span<const std::byte>>> buffers;
    /// Number of bad elements. Empty: the parameter keeps its own.
    std::optional<std::uint64_t> bad_elements = {};
};

/// Base of all optimizers: parameters, groups, step counts, policies.
///
/// Errors: every exception derives from flashoptim::Error or is std::bad_alloc. Unless a function says
/// otherwise, a call that throws changes nothing: weights, state, hyperparameters and counts are as before,
/// and the call may be repeated.
///
/// Thread-safety: one optimizer serves one thread at a time. Different optimizers may be used in different
/// threads at once if they share no device.
///
/// Ownership: the optimizer owns its state. Weights and gradients belong to the caller. A weight must outlive
/// the optimizer. A gradient is read during step(), step_parameter(), grad_norm() and clip_grad_norm() only.
///
/// Devices: with OptimizerOptions::device a step is enqueued. Under NonFinite::kSkipElement it does not
/// block; the other policies wait for the count of bad gradients. Every function that returns values to the
/// host blocks: norms, counts, master weights, moments and state.
class Optimizer {
public:
    using ParameterId = std::size_t;
    using GroupId = std::size_t;

    /// @throws InvalidArgument for hyperparameters as add_group(), a negative number of threads, or a backend
    ///         that this build or processor does not have. A backend that FLASHOPTIM_BACKEND names is checked
    ///         in the first step.
    Optimizer(Rule rule, const Hyperparameters& hyperparameters, const OptimizerOptions& options = {});
    virtual ~Optimizer();
    Optimizer(Optimizer&&) noexcept;
    Optimizer& operator=(Optimizer&&) noexcept;

    /// The update rule.
    [[nodiscard]] Rule rule() const;
    /// The options that the optimizer was made with.
    [[nodiscard]] const OptimizerOptions& options() const;

    /// Adds a parameter group with its own hyperparameters. Group 0 exists from the start. An
    /// initial_learning_rate of 0 means the learning rate given here.
    /// @throws InvalidArgument names the value that is out of its range.
    GroupId add_group(const Hyperparameters& hyperparameters);
    /// Number of groups, group 0 included.
    [[nodiscard]] std::size_t group_count() const;
    /// Hyperparameters of a group.
    [[nodiscard]] const Hyperparameters& hyperparameters(GroupId group = 0) const;
    /// Replaces the hyperparameters of a group from the next step on. An initial_learning_rate of 0 keeps the
    /// group's.
    /// @throws InvalidArgument as add_group().
    void set_hyperparameters(GroupId group, const Hyperparameters& hyperparameters);
    /// Sets the learning rate of every group from the next step on.
    /// @throws InvalidArgument as add_group().
    void set_learning_rate(double learning_rate);
    /// Sets the learning rate of one group from the next step on.
    /// @throws InvalidArgument as add_group().
    void set_learning_rate(GroupId group, double learning_rate);

    /// Adds a parameter and allocates its state. Its master weight starts as the stored weight: corrections
    /// are zero.
    /// @param weight float32, bfloat16 or float16, in any dense stride order. Not copied; it must outlive the
    ///         optimizer.
    /// @param name   for messages and saved files; empty: "parameter 0", ...
    /// @param group  the group whose hyperparameters it takes
    /// @param shard  where `weight` lies in a larger tensor, if it is a part of one
    /// @return its number: 0, 1, 2, ... in order
    /// @throws InvalidArgument if the weight is not dense, has another dtype or no data, lies in memory that
    ///         the device cannot use or at an address that is not a multiple of its element's size, or
    ///         overlaps a parameter or a gradient of this optimizer.
    ParameterId add_parameter(const TensorView& weight, std::string name = {}, GroupId group = 0,
                              const std::optional<Shard>& shard = std::nullopt);
    /// Number of parameters.
    [[nodiscard]] std::size_t parameter_count() const;
    /// Name of a parameter.
    [[nodiscard]] const std::string& name(ParameterId parameter) const;
    /// The weight as it was added.
    [[nodiscard]] const TensorView& weight(ParameterId parameter) const;
    /// The group of a parameter.
    [[nodiscard]] GroupId group_of(ParameterId parameter) const;

    /// Says where the gradient of a parameter lies. Every following step reads it there, until it is changed
    /// or cleared.
    /// @param parameter number of the parameter
    /// @param gradient  float32, bfloat16 or float16, of the weight's shape, with any strides (on a device:
    ///         the weight's memory order). Not copied.
    /// @throws InvalidArgument for another shape or dtype, an address that is not a multiple of the element's
    ///         size, strides that leave the address space, or elements in the memory of a weight of this
    ///         optimizer, which a step writes while it reads gradients. On a device also for another memory
    ///         order or host memory.
    void set_gradient(ParameterId parameter, const TensorView& gradient);
    /// Forgets the gradient of a parameter. Steps leave the parameter out.
    void clear_gradient(ParameterId parameter);
    /// Sets a factor for all gradients, 1 at first: 1 / loss scale times clip coefficient. Steps and norms
    /// multiply each gradient by it as they read it.
    /// @throws InvalidArgument if it is not finite.
    void set_gradient_factor(double factor);
    /// Sets a loss scale by its address: steps and norms also multiply gradients by 1 / *scale, in fp32. Each
    /// reads it when it runs, so that setting it does not block.
    /// @param scale in device memory (host memory for an optimizer on the host); not owned. Null: no loss
    ///         scale.
    /// @throws InvalidArgument for memory that the device cannot use.
    void set_grad_scale(const float* scale);
    /// Sets the address of a flag, as torch's GradScaler computes it. If it is not 0 when a step runs, that
    /// step changes nothing and counts nothing. A device then counts steps itself; step_count(),
    /// has_momentum() and saving block.
    /// @param found_inf in device memory (host memory for an optimizer on the host); not owned. Null: no
    ///         flag.
    /// @throws InvalidArgument for memory that the device cannot use.
    void set_found_inf(const float* found_inf);
    /// Euclidean norm of all gradients that are set, times the gradient factor and 1 / loss scale. Bad
    /// elements are left out. Blocks on a device. Formula: flashoptim::grad_norm.
    [[nodiscard]] double grad_norm();
    /// Computes the same norm without blocking. The next step() (not step_parameter()) also multiplies
    /// gradients by min(1, max_norm / (norm + 1e-6)), as torch's clip_grad_norm_ does.
    /// @return address of the norm, in device memory (host memory for an optimizer on the host); valid until
    ///         the next call
    /// @throws InvalidArgument for a max_norm that is negative or NaN.
    const double* clip_grad_norm(double max_norm);

    /// Steps every parameter that has a gradient.
    /// @throws NonFiniteError under NonFinite::kError. Nothing was stepped; bad elements were counted.
    /// @throws InvalidArgument if a step count is already 2^63 - 1.
    StepReport step();
    /// Steps one parameter, for gradient release.
    /// @throws InvalidArgument if it has no gradient; otherwise as step().
    StepReport step_parameter(ParameterId parameter);

    /// Number of steps that a parameter has made.
    [[nodiscard]] std::int64_t step_count(ParameterId parameter) const;
    /// Sets the number of steps that a parameter has made.
    /// @throws InvalidArgument for a negative number.
    void set_step_count(ParameterId parameter, std::int64_t steps);
    /// Number of bad elements of a parameter since it was added. Blocks on a device.
    [[nodiscard]] std::uint64_t bad_elements(ParameterId parameter) const;

    /// The master weight in memory order, numel floats.
    [[nodiscard]] std::vector<float> master(ParameterId parameter) const;
    /// Copies the master weight into `to`, in memory order.
    /// @throws InvalidArgument for another size.
    void copy_master(ParameterId parameter, std::span<float> to) const;
    /// Sets a master weight: writes the stored weight and its correction. `values` are in memory order.
    /// @throws InvalidArgument for another size.
    void set_master(ParameterId parameter, std::span<const float> values);
    /// Makes the stored weight the master weight: clears the correction. Otherwise a weight that the caller
    /// writes between steps keeps its correction, which moves the master by at most half a unit in the last
    /// place of the stored weight; so a clamp or a mask loses nothing. Only this function, set_master() and
    /// loading replace corrections.
    void refresh_masters(ParameterId parameter);
    /// The same for every parameter.
    void refresh_masters();

    /// A moment as fp32 in memory order; a squared moment itself, not its root. Empty if there is no such
    /// moment.
    /// @param parameter number of the parameter
    /// @param number    of the moment, in the order of the rule's row in the table of rules
    [[nodiscard]] std::vector<float> moment(ParameterId parameter, int number) const;

    /// The state buffers of a parameter. On the host the bytes are the buffers themselves: writing them
    /// replaces the state. On a device they are copies.
    [[nodiscard]] std::vector<StateTensor> state(ParameterId parameter);
    /// The stored weight in the same way, under the name "weight".
    [[nodiscard]] StateTensor stored_weight(ParameterId parameter);
    /// Replaces one buffer, or the stored weight, by bytes that state() or stored_weight() returned. Only
    /// their number is checked.
    /// @throws InvalidArgument for a name that the parameter does not have, or another number of bytes.
    void set_stored(ParameterId parameter, std::string_view name, std::span<const std::byte> bytes);
    /// Loads the hyperparameters of every group and the saved state of parameters: all of it, or nothing if
    /// it throws. A device that fails during the copy leaves its part of the buffers undefined.
    /// @throws InvalidArgument for another number of groups, hyperparameters out of their range, or what
    ///         set_stored() refuses.
    /// @throws std::bad_alloc if there is no memory.
    void restore(std::span<const Hyperparameters> groups, std::span<const SavedState> states);
    /// Which buffers the parameter has.
    [[nodiscard]] const StoragePlan& storage(ParameterId parameter) const;
    /// How the parameter's elements are counted.
    [[nodiscard]] const Layout& layout(ParameterId parameter) const;
    /// SGD: whether the momentum buffer has been filled.
    [[nodiscard]] bool has_momentum(ParameterId parameter) const;
    /// SGD: says whether the momentum buffer has been filled.
    void set_has_momentum(ParameterId parameter, bool has);

    /// The memory that the optimizer uses now, with the caller's weights and gradients.
    [[nodiscard]] MemoryReport memory_report() const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// Checks hyperparameters. A rule's own must lie in their ranges, all others must be finite. fully_decoupled
/// weight decay needs an initial_learning_rate.
/// @throws InvalidArgument names the first that fails.
void check_hyperparameters(Rule rule, const Hyperparameters& hyperparameters);

// The hyperparameters of each rule. The defaults are those of the table of rules.

/// Hyperparameters of SGD and SGDW.
struct SGDHyperparameters {
    double learning_rate = 1e-3, momentum = 0.0, dampening = 0.0, weight_decay = 0.0;
    bool nesterov = false, maximize = false;
    /// SGDW: weights decay by weight_decay * learning_rate / the first learning rate.
    bool fully_decoupled = false;

    /// The same as the core reads it.
    [[nodiscard]] Hyperparameters hyperparameters() const {
        auto h = default_hyperparameters(Rule::kSGD);
        h.learning_rate = learning_rate;
        h.momentum = momentum;
        h.dampening = dampening;
        h.weight_decay = weight_decay;
        h.nesterov = nesterov;
        h.maximize = maximize;
        h.fully_decoupled = fully_decoupled;
        return h;
    }
};
/// Hyperparameters of Adam.
struct AdamHyperparameters {
    double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0.0;
    bool maximize = false;

    /// The same as the core reads it.
    [[nodiscard]] Hyperparameters hyperparameters() const {
        auto h = default_hyperparameters(Rule::kAdam);
        h.learning_rate = learning_rate;
        h.beta1 = beta1;
        h.beta2 = beta2;
        h.epsilon = epsilon;
        h.weight_decay = weight_decay;
        h.maximize = maximize;
        return h;
    }
};
/// Hyperparameters of AdamW.
struct AdamWHyperparameters {
    double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 1e-2;
    bool maximize = false;
    /// Weights decay by weight_decay * learning_rate / the first learning rate.
    bool fully_decoupled = false;

    /// The same as the core reads it.
    [[nodiscard]] Hyperparameters hyperparameters() const {
        auto h = AdamHyperparameters{learning_rate, beta1, beta2, epsilon, weight_decay, maximize}
                     .hyperparameters();
        h.fully_decoupled = fully_decoupled;
        return h;
    }
};
/// Hyperparameters of Lion.
struct LionHyperparameters {
    double learning_rate = 1e-4, beta1 = 0.9, beta2 = 0.99, weight_decay = 0.0;
    bool maximize = false;
    /// Weights decay by weight_decay * learning_rate / the first learning rate.
    bool fully_decoupled = false;

    /// The same as the core reads it.
    [[nodiscard]] Hyperparameters hyperparameters() const {
        auto h = default_hyperparameters(Rule::kLion);
        h.learning_rate = learning_rate;
        h.beta1 = beta1;
        h.beta2 = beta2;
        h.weight_decay = weight_decay;
        h.maximize = maximize;
        h.fully_decoupled = fully_decoupled;
        return h;
    }
};
/// Hyperparameters of AdEMAMix.
struct AdEMAMixHyperparameters {
    double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, beta3 = 0.9999, alpha = 2.0;
    /// Steps in which alpha grows from 0, and beta3 from beta1. 0: they have their values from the beginning.
    double alpha_warmup = 0.0, beta3_warmup = 0.0;
    double epsilon = 1e-8, weight_decay = 0.0;
    bool maximize = false;
    /// Weights decay by weight_decay * learning_rate / the first learning rate.
    bool fully_decoupled = false;

    /// The same as the core reads it.
    [[nodiscard]] Hyperparameters hyperparameters() const {
        auto h = default_hyperparameters(Rule::kAdEMAMix);
        h.learning_rate = learning_rate;
        h.beta1 = beta1;
        h.beta2 = beta2;
        h.beta3 = beta3;
        h.alpha = alpha;
        h.alpha_warmup = alpha_warmup;
        h.beta3_warmup = beta3_warmup;
        h.epsilon = epsilon;
        h.weight_decay = weight_decay;
        h.maximize = maximize;
        h.fully_decoupled = fully_decoupled;
        return h;
    }
};
/// Hyperparameters of Adan. The betas are decay rates: of gradients, of their differences and of squares.
struct AdanHyperparameters {
    double learning_rate = 1e-3, beta1 = 0.98, beta2 = 0.92, beta3 = 0.99;
    double epsilon = 1e-8, weight_decay = 0.0;
    /// true: decay multiplies the old weight by 1 - learning_rate * weight_decay. false: it divides the new
    /// weight by 1 + learning_rate * weight_decay.
    bool no_prox = false;
    bool maximize = false;
    /// Weights decay by weight_decay * learning_rate / the first learning rate.
    bool fully_decoupled = false;

    /// The same as the core reads it.
    [[nodiscard]] Hyperparameters hyperparameters() const {
        auto h = default_hyperparameters(Rule::kAdan);
        h.learning_rate = learning_rate;
        h.beta1 = beta1;
        h.beta2 = beta2;
        h.beta3 = beta3;
        h.epsilon = epsilon;
        h.weight_decay = weight_decay;
        h.no_prox = no_prox;
        h.maximize = maximize;
        h.fully_decoupled = fully_decoupled;
        return h;
    }
};

/// An optimizer of one rule. Every rule has its class below.
template <Rule kRule, class RuleOptions>
class OptimizerOf : public Optimizer {
public:
    /// @throws what Optimizer's constructor throws.
    explicit OptimizerOf(const RuleOptions& rule = {}, const OptimizerOptions& options = {})
        : Optimizer(kRule, rule.hyperparameters(), options) {}
};

/// SGD with momentum and an L2 term in the gradient, as torch.optim.SGD (docs/optimizers/sgd.md).
class SGD : public OptimizerOf<Rule::kSGD, SGDHyperparameters> {
public:
    using OptimizerOf::OptimizerOf;
};
/// SGD with momentum and decoupled weight decay (docs/optimizers/sgd.md).
class SGDW : public OptimizerOf<Rule::kSGDW, SGDHyperparameters> {
public:
    using OptimizerOf::OptimizerOf;
};
/// Adam with an L2 term in the gradient, as torch.optim.Adam (docs/optimizers/adam.md).
class Adam : public OptimizerOf<Rule::kAdam, AdamHyperparameters> {
public:
    using OptimizerOf::OptimizerOf;
};
/// Adam with decoupled weight decay, as torch.optim.AdamW (docs/optimizers/adamw.md).
class AdamW : public OptimizerOf<Rule::kAdamW, AdamWHyperparameters> {
public:
    using OptimizerOf::OptimizerOf;
};
/// Lion: the sign of an interpolated momentum, with decoupled weight decay (docs/optimizers/lion.md).
class Lion : public OptimizerOf<Rule::kLion, LionHyperparameters> {
public:
    using OptimizerOf::OptimizerOf;
};
/// AdEMAMix: AdamW with a second, slower mean of the gradients (docs/optimizers/ademamix.md).
class AdEMAMix : public OptimizerOf<Rule::kAdEMAMix, AdEMAMixHyperparameters> {
public:
    using OptimizerOf::OptimizerOf;
};
/// Adan: Nesterov momentum from the difference to the last gradient (docs/optimizers/adan.md).
class Adan : public OptimizerOf<Rule::kAdan, AdanHyperparameters> {
public:
    using OptimizerOf::OptimizerOf;
};

}  // namespace flashoptim

#endif
