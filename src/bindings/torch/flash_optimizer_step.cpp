// A step: checks the gradients, brings them into the memory order of their parameters, then calls the core
// once. Everything that may fail comes before the first weight is written. Everything that the optimizer
// keeps comes after the last one.
#include <algorithm>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

#include "optimizer_impl.h"
#include "state_buffers.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

/// Weights of converted states. They are written before the kernels run and restored if the kernels fail.
class ConvertedWeights {
public:
    explicit ConvertedWeights(const std::vector<StepBatch>& batches) {
        for (std::size_t b = 0; b < batches.size(); ++b) {
            for (std::size_t n = 0; n < batches[b].items.size(); ++n) {
                const auto* parameter = batches[b].parameters[n];
                const auto& weight = batches[b].fresh[n].weight;
                if (weight.defined())
                    written_.push_back({b, parameter, weight, parameter->tensor.detach().clone()});
            }
        }
    }
    void write(std::size_t batch) const {
        for (const auto& one : written_) {
            if (one.batch == batch) OptimizerImpl::write_weight(*one.parameter, one.weight);
        }
    }
    void take_back(std::size_t batch) const noexcept {
        for (const auto& one : written_) {
            if (one.batch != batch) continue;
            try {
                OptimizerImpl::write_weight(*one.parameter, one.before);
            } catch (...) {
                continue;  // the device has failed and its memory is lost
            }
        }
    }

private:
    struct Written {
        std::size_t batch;
        const Parameter* parameter;
        torch::Tensor weight, before;
    };
    std::vector<Written> written_;
};

/// The thread pool of all optimizers that follow torch's number of threads. When that number changes, an
/// optimizer that is in a step keeps the old pool.
std::shared_ptr<ThreadPool> shared_pool(int threads) {
    static std::mutex mutex;
    static std::shared_ptr<ThreadPool> pool;
    const std::lock_guard lock(mutex);
    if (pool == nullptr || pool->threads() != threads) pool = std::make_shared<ThreadPool>(threads);
    return pool;
}

}  // namespace

void OptimizerImpl::check_gradient(const Parameter& parameter, const torch::Tensor& gradient) {
    const auto& tensor = parameter.tensor;
    if (!gradient.defined()) return;
    const auto refuse = [&](const std::string& why) {
        throw InvalidArgument(parameter.name + ": its gradient " + why);
    };
    if (gradient.layout() != torch::kStrided) {
        refuse("is sparse; make it dense (for an embedding: EmbeddingOptions().sparse(false))");
    }
    if (gradient.device() != tensor.device()) {
        refuse("is on " + gradient.device().str() + "; move it to the parameter's device, " +
               tensor.device().str());
    }
    if (!is_steppable(gradient.scalar_type())) {
        refuse("is " + name_of(gradient.scalar_type()) + "; give float32, bfloat16 or float16");
    }
    if (gradient.sizes() != tensor.sizes()) {
        refuse("has the shape " + describe(gradient.sizes()) + "; give one of the parameter's shape");
    }
}

void OptimizerImpl::append(Parameter& parameter, const torch::Tensor& given, DeviceList& list,
                           bool makes_states, std::vector<StepBatch>& batches) {
    check_gradient(parameter, given);
    if (!given.defined()) return;
    const auto& form = parameter.form;
    const auto& device = form.device;
    auto place = std::ranges::find(batches, device, &StepBatch::device);
    if (place == batches.end()) {
        if (is_on_device(device) && !list) list.emplace(make_stepper(device));
        place = batches.insert(batches.end(), {device, list ? &*list : nullptr, {}, {}, {}, {}});
    }
    auto& batch = *place;
    auto gradient = in_order(given.detach(), form.layout.strides, given.scalar_type());
    auto fresh = makes_states ? fresh_state(parameter) : FreshState();
    const auto* state = fresh.state ? fresh.state.get() : state_of(parameter);
    const auto& options = options_of(parameter);
    StepItem item;
    item.layout = &form.layout;
    item.plan = form.plan;
    item.weight =
        fresh.weight.defined() ? fresh.weight.mutable_data_ptr() : parameter.tensor.mutable_data_ptr();
    if (state == nullptr || (!makes_states && parameter.former)) {
        // For calls that need no state. A device would read every buffer of the plan, so the plan is empty.
        item.plan = {};
        item.plan.weight_dtype = form.plan.weight_dtype;
    } else {
        item.state = buffers(*state, form.plan, parameter.name);
        if (state->step() == std::numeric_limits<std::int64_t>::max()) {
            throw InvalidArgument(parameter.name +
                                  " has made 2^63 - 1 steps, the most that can be counted; set a lower step "
                                  "count");
        }
        item.step = state->step() + 1;
        item.has_momentum = state->has_momentum();
    }
    item.gradient = gradient.const_data_ptr();
    item.gradient_dtype = dtype_of(gradient.scalar_type()).value();
    item.gradient_factor = static_cast<float>(gradient_factor);
    item.rule = rule;
    item.hyperparameters = options.hyperparameters();
    item.check_gradient = options.checks_gradients();
    batch.items.push_back(item);
    batch.parameters.push_back(&parameter);
    batch.gradients.push_back(std::move(gradient));
    batch.fresh.push_back(std::move(fresh));
}

bool OptimizerImpl::must_count(const std::vector<StepBatch>& batches) const {
    return std::ranges::any_of(batches, [&](const StepBatch& batch) {
        return std::ranges::any_of(batch.parameters,
                                   [&](const auto* p) { return policy_of(*p) != NonFinite::kSkipElement; });
    });
}

bool OptimizerImpl::is_kept_back(std::vector<StepBatch>& batches, StepReport& report) {
    if (!must_count(batches)) return false;
    const auto keeps_back = [this](const Parameter* p) { return policy_of(*p) != NonFinite::kSkipElement; };
    for (auto& batch : batches) {
        report.bad_elements += batch.stepper != nullptr
                                   ? (*batch.stepper)->count_bad_gradients(batch.items, batch.numbers())
                                   : count_bad_gradients(batch.items, pool());
        for (std::size_t n = 0; n < batch.items.size(); ++n) {
            if (batch.items[n].bad_elements != 0 && keeps_back(batch.parameters[n])) report.skipped = true;
        }
    }
    return report.skipped;
}

void OptimizerImpl::keep_back(std::vector<StepBatch>& batches, const StepReport& report) {
    std::optional<NonFiniteError> error;
    for (const auto& batch : batches) {
        for (std::size_t n = 0; n < batch.items.size(); ++n) {
            if (error || batch.items[n].bad_elements == 0 ||
                policy_of(*batch.parameters[n]) != NonFinite::kError)
                continue;
            error.emplace(
                batch.parameters[n]->name + ": " + std::to_string(batch.items[n].bad_elements) +
                " elements of its gradient are NaN, infinite or at least 2^48; nothing was stepped: "
                "lower the loss scale or the learning rate, or choose NonFinite::kSkipElement");
        }
    }
    StateSlots slots(*owner);
    for (auto& batch : batches) {
        for (auto* parameter : batch.parameters) slots.reserve(*parameter);
    }
    // Nothing below can fail.
    for (auto& batch : batches) {
        for (std::size_t n = 0; n < batch.items.size(); ++n) {
            auto& parameter = *batch.parameters[n];
            // Only new states are installed. A converted state is installed by the step that uses it.
            if (batch.fresh[n].state && !state_of(parameter))
                install(parameter, std::move(batch.fresh[n].state));
            count_bad(parameter.key(), batch.items[n].bad_elements);
        }
    }
    last_step = report;
    if (error) throw *error;
}

void OptimizerImpl::step_batch(StepBatch& batch, StepReport& report) {
    if (batch.stepper == nullptr) {
        report.bad_elements += flashoptim::step(batch.items, pool());
        return;
    }
    std::vector<const void*> keys;
    for (const auto* p : batch.parameters) keys.push_back(p->key());
    may_count_bad_ = true;
    batch.stepper->step(
        batch.items, keys, [this](const void* key, std::uint64_t count) { count_bad(key, count); },
        batch.numbers());
}

void OptimizerImpl::finish(StepBatch& batch) noexcept {
    for (std::size_t n = 0; n < batch.items.size(); ++n) {
        const auto& item = batch.items[n];
        auto& parameter = *batch.parameters[n];
        if (batch.fresh[n].state) install(parameter, std::move(batch.fresh[n].state));
        auto& state = *state_of(parameter);
        if (!parameter.counts_on_device) {
            state.step(item.step);
            if (state.at(codes_place(0)).defined()) state.has_momentum(true);
        }
        if (!parameter.tensor.is_inference()) torch::autograd::impl::bump_version(parameter.tensor);
        if (batch.stepper == nullptr && item.bad_elements != 0) count_bad(parameter.key(), item.bad_elements);
    }
}

void OptimizerImpl::run(std::vector<StepBatch>& batches, const GradientNumbers& numbers) {
    StepReport report;
    bring_factors(batches, numbers);
    if (is_found_inf(batches, numbers.found_inf)) {
        report.skipped = true;
        last_step = report;
        return;
    }
    count_on_device(batches);
    if (is_kept_back(batches, report)) return keep_back(batches, report);

    report.bad_elements = 0;
    StateSlots slots(*owner);
    const ConvertedWeights weights(batches);
    for (auto& batch : batches) {
        for (std::size_t n = 0; n < batch.items.size(); ++n) {
            if (batch.fresh[n].state) slots.reserve(*batch.parameters[n]);
            batch.items[n].weight = batch.parameters[n]->tensor.mutable_data_ptr();
        }
    }
    std::size_t done = 0;
    try {
        for (auto& batch : batches) {
            weights.write(done);
            step_batch(batch, report);
            ++done;
        }
    } catch (...) {
        weights.take_back(done);
        for (std::size_t n = 0; n < done; ++n) finish(batches[n]);
        throw;
    }
    for (auto& batch : batches) finish(batch);
    last_step = report;
}

void OptimizerImpl::set_gradient(Parameter& parameter, const torch::Tensor& gradient) {
    if (gradient.defined() && !release.expired()) {
        throw InvalidArgument(parameter.name +
                              " cannot be given a gradient during gradient release, which steps by those of "
                              "backward(); remove the GradientRelease first");
    }
    check_gradient(parameter, gradient);
    parameter.gradient = gradient;
}

void OptimizerImpl::clear_gradients() {
    for (auto& [key, parameter] : parameters_) parameter.gradient.reset();
}

std::vector<StepBatch> OptimizerImpl::all_with_gradients(bool makes_states) {
    std::vector<StepBatch> batches;
    for (auto* parameter : all()) {
        append(*parameter, parameter->gradient_now(), device_lists_[parameter->form.device.index()],
               makes_states, batches);
    }
    return batches;
}

void OptimizerImpl::step_all() {
    gradient_numbers.follow_clipped();
    auto batches = all_with_gradients(/*makes_states=*/true);
    // The clip coefficient belongs to the current gradients. If this step fails, it is kept for the retry.
    try {
        run(batches, gradient_numbers);
    } catch (const NonFiniteError&) {
        gradient_numbers.forget_clipping();
        throw;
    }
    gradient_numbers.forget_clipping();
}

void OptimizerImpl::step_one(const torch::Tensor& tensor) {
    auto& parameter = find(tensor);
    check_hyperparameters(rule, options_of(parameter).hyperparameters());
    register_memory(parameter);
    std::vector<StepBatch> batches;
    append(parameter, tensor.grad(), parameter.alone, /*makes_states=*/true, batches);
    run(batches, {gradient_numbers.grad_scale, {}, gradient_numbers.found_inf});
}

int OptimizerImpl::threads() const { return chosen_threads.value_or(at::get_num_threads()); }

ThreadPool& OptimizerImpl::pool() {
    const auto wanted = threads();
    if (!pool_ || pool_->threads() != wanted)
        pool_ = chosen_threads ? std::make_shared<ThreadPool>(wanted) : shared_pool(wanted);
    return *pool_;
}

bool OptimizerImpl::is_released() {
    const auto control = release.lock();
    if (!control) return false;
    if (!std::exchange(control->said_so, true)) {
        TORCH_WARN(
            "flashoptim: step() and zero_grad() do nothing while GradientRelease lives: backward() steps "
            "each parameter and frees its gradient (but for parameters that came into a group later)");
    }
    return true;
}

}  // namespace flashoptim::libtorch
