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
    StorageOptions storage;
    NonFinite nonfinite = NonFinite::kSkipElement;
    bool check_gradients =
        true;         // `paper` only: false takes NaN and Inf as they come, as its authors' code does
    int threads = 0;  // of a step, at most; 0: as many as the process may use CPUs (ThreadPool)
    Backend backend = Backend::kAutomatic;
    /// Null: memory of the host. Otherwise weights and gradients are in memory of this device, state is allocated there and steps
    /// run there (cuda_device.h); threads and backend are then of no use. Optimizers may share a device.
    std::shared_ptr<Device> device;
};

/// Bytes by kind.
struct MemoryReport {
    std::size_t weights = 0, corrections = 0, moments = 0, scales = 0, gradients = 0;
    std::int64_t parameters = 0;  // elements
    [[nodiscard]] std::size_t total() const { return weights + corrections + moments + scales + gradients; }
};

/// What a step did.
struct StepReport {
    /// Of all parameters. On a device steps of NonFinite::kSkipElement are not waited for: 0 here, Optimizer::bad_elements
    /// counts them.
    std::uint64_t bad_elements = 0;
    /// NonFinite::kSkipStep found a bad gradient, or found_inf was set: nothing changed. Under NonFinite::kSkipElement a device's
    /// found_inf is not waited for: false here.
    bool skipped = false;
};

/// One buffer of a parameter, for saving and loading. Bytes are exactly what the optimizer computes with.
struct StateTensor {
    std::string
        name;  // "error_bits", "exp_avg", "exp_avg_scales", "exp_avg_sq", "exp_avg_sq_scales", "momentum_buffer", ...
    DType dtype;
    std::vector<std::int64_t> shape;
    std::span<std::byte> bytes;
    std::shared_ptr<std::byte[]> copy;  // of a device's memory: owns `bytes`
};

/// What was saved of one parameter. The bytes are borrowed.
struct SavedState {
    std::size_t parameter = 0;
    std::int64_t steps = 0;
    bool has_momentum = false;
    /// By the names of state() and stored_weight(), with bytes such as those give. What is not named stays as it is.
    std::vector<std::pair<std::string_view, std::span<const std::byte>>> buffers;
};

/// Base of all rules: parameters, groups, step counts, policies.
///
/// Errors: what a call throws derives from flashoptim::Error, or is std::bad_alloc. A call that throws has changed nothing, unless it says
/// so: weights, state, hyperparameters and counts are as before, and the call may be made again.
///
/// Thread-safety: one optimizer serves one thread at a time; different optimizers may be used in different threads at once, if they
/// share no device. Weights given to it must outlive it or be removed by destroying it; gradients are read during step() only.
///
/// With OptimizerOptions::device steps are enqueued and return at once under NonFinite::kSkipElement; the other policies wait for the
/// count of bad gradients. Everything that returns values waits: norms, counts, masters, moments and state are copied to the host.
class Optimizer {
public:
    using ParameterId = std::size_t;
    using GroupId = std::size_t;

    virtual ~Optimizer();
    Optimizer(Optimizer&&) noexcept;
    Optimizer& operator=(Optimizer&&) noexcept;

    [[nodiscard]] Rule rule() const;
    [[nodiscard]] const OptimizerOptions& options() const;

    /// Adds a parameter group with its own hyperparameters. Group 0 exists from the start.
    /// An initial_learning_rate of 0 means the learning rate given here.
    /// @throws InvalidArgument for a value out of its range; it is named.
    GroupId add_group(const Hyperparameters& hyperparameters);
    [[nodiscard]] std::size_t group_count() const;
    [[nodiscard]] const Hyperparameters& hyperparameters(GroupId group = 0) const;
    /// Takes effect in the next step. An initial_learning_rate of 0 keeps the group's. @throws InvalidArgument as add_group.
    void set_hyperparameters(GroupId group, const Hyperparameters& hyperparameters);
    /// Of every group.
    void set_learning_rate(double learning_rate);
    void set_learning_rate(GroupId group, double learning_rate);

    /// Adds a parameter (float32, bfloat16 or float16, any dense stride order) and allocates its state. The weight is the
    /// master at this moment: corrections are zero. `shard`: where this part lies in a larger tensor.
    /// @throws InvalidArgument if it is not dense, has another dtype, has no data, lies in memory that the device
    /// cannot use or at an address that is not a multiple of its element's size, or overlaps a parameter or a gradient already there.
    ParameterId add_parameter(const TensorView& weight, std::string name = {}, GroupId group = 0,
                              const std::optional<Shard>& shard = std::nullopt);
    [[nodiscard]] std::size_t parameter_count() const;
    [[nodiscard]] const std::string& name(ParameterId parameter) const;
    [[nodiscard]] const TensorView& weight(ParameterId parameter) const;
    [[nodiscard]] GroupId group_of(ParameterId parameter) const;

    /// Where the gradient lies (float32, bfloat16, float16; the weight's shape; any strides, also not dense). Not owned; read
    /// by every following step until it is changed or cleared.
    /// @throws InvalidArgument for another shape or dtype, an address that is not a multiple of the element's size, strides that
    ///         reach out of the address space, elements in the memory of a weight of this optimizer (a step writes weights while it reads
    ///         gradients); on a device also for another order or for memory of the host.
    void set_gradient(ParameterId parameter, const TensorView& gradient);
    void clear_gradient(ParameterId parameter);
    /// Multiplies every gradient as it is read: 1/loss scale times clip coefficient. 1 at first. Must be finite.
    void set_gradient_factor(double factor);
    /// Loss scale: gradients are also multiplied by 1 / *scale, as fp32, from now on. It lies in memory of the device (of the host
    /// where the optimizer has none) and is read by each step and norm when that runs, so that nobody waits for it. Not owned; null
    /// takes it back. @throws InvalidArgument for memory that the device cannot use.
    void set_grad_scale(const float* scale);
    /// A number in the same place: where it is not 0 when a step runs, nothing is stepped and nothing counted, as where torch's
    /// GradScaler finds an infinity. Steps on a device are then counted there: step_count, has_momentum and saving wait for them.
    void set_found_inf(const float* found_inf);
    /// Norm of all gradients that are set, times the factor and 1 / grad scale (formula: step.h).
    [[nodiscard]] double grad_norm();
    /// The same, but nobody waits, and the next step() (not step_parameter) also multiplies gradients by
    /// min(1, max_norm / (norm + 1e-6)), as torch's clip_grad_norm_ does.
    /// @return where the norm comes to lie, in memory of the device (of the host where there is none); until the next call
    /// @throws InvalidArgument for a norm that is negative or NaN.
    const double* clip_grad_norm(double max_norm);

    /// Steps every parameter that has a gradient. @throws NonFiniteError under NonFinite::kError: nothing was stepped, bad
    /// elements are counted. @throws InvalidArgument where a step count is the largest that 63 bits hold.
    StepReport step();
    /// Steps one parameter (gradient release). It must have a gradient.
    StepReport step_parameter(ParameterId parameter);

    /// Steps that this parameter has made.
    [[nodiscard]] std::int64_t step_count(ParameterId parameter) const;
    /// @throws InvalidArgument for a negative number.
    void set_step_count(ParameterId parameter, std::int64_t steps);
    /// Elements of this parameter that were skipped since it was added.
    [[nodiscard]] std::uint64_t bad_elements(ParameterId parameter) const;

    /// Full-precision weights in memory order, numel floats.
    [[nodiscard]] std::vector<float> master(ParameterId parameter) const;
    void copy_master(ParameterId parameter, std::span<float> to) const;
    /// Writes a full-precision weight: the weight and its correction. @throws InvalidArgument for another size.
    void set_master(ParameterId parameter, std::span<const float> values);
    /// Takes what the weight holds now for the master: clears its correction. Without this a weight that was written from outside
    /// keeps its correction, which moves the master by at most half a unit in the last place of the stored weight: a clamp or a
    /// mask between steps loses nothing. Only this, set_master and loading a state replace corrections.
    void refresh_masters(ParameterId parameter);
    void refresh_masters();

    /// fp32 values of a moment in memory order; empty where the rule has none.
    [[nodiscard]] std::vector<float> first_moment(ParameterId parameter) const;
    [[nodiscard]] std::vector<float> second_moment(ParameterId parameter) const;

    /// The state buffers of a parameter: in memory of the host as they lie, so that writing into `bytes` replaces them; of a
    /// device's copies.
    [[nodiscard]] std::vector<StateTensor> state(ParameterId parameter);
    /// The same of the stored weight, under the name "weight".
    [[nodiscard]] StateTensor stored_weight(ParameterId parameter);
    /// Replaces a buffer, or the stored weight, by bytes such as these functions give, unchecked but for their number.
    /// @throws InvalidArgument for a name that the parameter does not have or another number of bytes.
    void set_stored(ParameterId parameter, std::string_view name, std::span<const std::byte> bytes);
    /// Takes over the hyperparameters of every group and what was saved of parameters: all of it, or nothing where this throws (a
    /// device that fails while it copies leaves its part of the buffers undefined).
    /// @throws InvalidArgument for another number of groups, hyperparameters that the rule cannot take, and what set_stored refuses;
    /// std::bad_alloc
    void restore(std::span<const Hyperparameters> groups, std::span<const SavedState> states);
    [[nodiscard]] const StoragePlan& storage(ParameterId parameter) const;
    [[nodiscard]] const Layout& layout(ParameterId parameter) const;
    /// SGD: whether the momentum buffer has been filled.
    [[nodiscard]] bool has_momentum(ParameterId parameter) const;
    void set_has_momentum(ParameterId parameter, bool has);

    [[nodiscard]] MemoryReport memory_report() const;

protected:
    /// @throws InvalidArgument for hyperparameters as add_group, a number of threads that is negative, or a backend that this build or
    /// processor does not have (one that FLASHOPTIM_BACKEND names is looked for in the first step).
    Optimizer(Rule rule, const Hyperparameters& hyperparameters, const OptimizerOptions& options);

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// Throws InvalidArgument that names the first hyperparameter out of its range for this rule. Those that the rule does not
/// read must be finite. fully_decoupled weight decay needs an initial_learning_rate.
void check_hyperparameters(Rule rule, const Hyperparameters& hyperparameters);

struct SGDOptions {
    double learning_rate = 1e-3, momentum = 0.0, dampening = 0.0, weight_decay = 0.0;
    bool nesterov = false, maximize = false;
    bool fully_decoupled = false;  // SGDW
};
struct AdamOptions {
    double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0.0;
    bool maximize = false;
};
struct AdamWOptions {
    double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 1e-2;
    bool maximize = false;
    bool fully_decoupled = false;  // weights decay by weight_decay * learning_rate / the first learning rate
};
struct LionOptions {
    double learning_rate = 1e-4, beta1 = 0.9, beta2 = 0.99, weight_decay = 0.0;
    bool maximize = false;
    bool fully_decoupled = false;
};

class SGD : public Optimizer {
public:
    explicit SGD(const SGDOptions& rule = {}, const OptimizerOptions& options = {});
};
class SGDW : public Optimizer {
public:
    explicit SGDW(const SGDOptions& rule = {}, const OptimizerOptions& options = {});
};
class Adam : public Optimizer {
public:
    explicit Adam(const AdamOptions& rule = {}, const OptimizerOptions& options = {});
};
class AdamW : public Optimizer {
public:
    explicit AdamW(const AdamWOptions& rule = {}, const OptimizerOptions& options = {});
};
class Lion : public Optimizer {
public:
    explicit Lion(const LionOptions& rule = {}, const OptimizerOptions& options = {});
};

}  // namespace flashoptim

#endif
