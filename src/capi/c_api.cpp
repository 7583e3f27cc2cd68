// The C face of optimizer.h, quantize.h and the saving of optimizers: checks and translates, computes nothing.
#include "flashoptim/c_api.h"

#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "c_device.h"
#include "c_types.h"
#include "flashoptim/checkpoint.h"
#include "flashoptim/cuda.h"
#include "flashoptim/version.h"

using namespace flashoptim;
using namespace flashoptim::capi;

namespace {

/// An optimizer whose rule is a value.
class AnyOptimizer : public Optimizer {
public:
    AnyOptimizer(Rule rule, const Hyperparameters& hyperparameters, const OptimizerOptions& options)
        : Optimizer(rule, hyperparameters, options) {}
};

}  // namespace

struct flashoptim_optimizer {
    explicit flashoptim_optimizer(AnyOptimizer&& made) : optimizer(std::move(made)) {}
    AnyOptimizer optimizer;
};

namespace {

using Message = std::array<char, 1024>;

Message& last_error() noexcept {
    thread_local Message message{};
    return message;
}

flashoptim_status fail(flashoptim_status status, std::string_view what) noexcept {
    auto& message = last_error();
    const auto length = std::min(what.size(), message.size() - 1);
    std::copy_n(what.begin(), length, message.begin());
    message[length] = '\0';
    return status;
}

/// Runs `body`; what it throws becomes a status.
template <class Body>
flashoptim_status guarded(Body body) noexcept {
    try {
        body();
        return FLASHOPTIM_OK;
    } catch (const InvalidArgument& error) {
        return fail(FLASHOPTIM_INVALID_ARGUMENT, error.what());
    } catch (const IoError& error) {
        return fail(FLASHOPTIM_IO_ERROR, error.what());
    } catch (const FormatError& error) {
        return fail(FLASHOPTIM_FORMAT_ERROR, error.what());
    } catch (const NonFiniteError& error) {
        return fail(FLASHOPTIM_NONFINITE, error.what());
    } catch (const cuda::Error& error) {
        return fail(FLASHOPTIM_DEVICE_ERROR, error.what());
    } catch (const std::bad_alloc&) {
        return fail(FLASHOPTIM_OUT_OF_MEMORY, "out of memory: use smaller tensors or a smaller format");
    } catch (const std::exception& error) {
        return fail(FLASHOPTIM_INTERNAL_ERROR, error.what());
    } catch (...) {
        return fail(FLASHOPTIM_INTERNAL_ERROR, "an unknown exception: please report it");
    }
}

template <class T>
void write(T* to, T value) {
    if (to != nullptr) *to = value;
}
Optimizer& core(flashoptim_optimizer* handle) { return not_null(handle, "optimizer").optimizer; }
const Optimizer& core(const flashoptim_optimizer* handle) { return not_null(handle, "optimizer").optimizer; }

bool keeps_first_moment(const Optimizer& optimizer, size_t parameter) {
    const bool is_sgd = optimizer.rule() == Rule::kSGD || optimizer.rule() == Rule::kSGDW;
    return !is_sgd || optimizer.hyperparameters(optimizer.group_of(parameter)).momentum != 0.0;
}
bool keeps_second_moment(const Optimizer& optimizer) {
    return optimizer.rule() == Rule::kAdam || optimizer.rule() == Rule::kAdamW;
}

void write_report(const StepReport& report, std::uint64_t* bad_elements, std::int32_t* skipped) {
    write(bad_elements, report.bad_elements);
    write(skipped, std::int32_t{report.skipped ? 1 : 0});
}

}  // namespace

extern "C" {

std::int32_t flashoptim_abi_version(void) { return FLASHOPTIM_ABI_VERSION; }
const char* flashoptim_version(void) { return FLASHOPTIM_VERSION_STRING; }
const char* flashoptim_last_error(void) { return last_error().data(); }

std::int32_t flashoptim_cuda_device_count(void) { return capi::cuda_device_count(); }

flashoptim_status flashoptim_options_init(flashoptim_options* options, size_t size) {
    return guarded([&] { write_struct(to_c(OptimizerOptions{}), size, kFirstOptions, options, "options"); });
}
flashoptim_status flashoptim_hyperparameters_init(flashoptim_hyperparameters* hyperparameters, size_t size,
                                                  std::int32_t rule) {
    return guarded([&] {
        write_struct(to_c(default_hyperparameters(to_rule(rule))), size, kFirstHyperparameters,
                     hyperparameters, "hyperparameters");
    });
}

flashoptim_status flashoptim_create(std::int32_t rule, const flashoptim_hyperparameters* hyperparameters,
                                    const flashoptim_options* options, flashoptim_optimizer** optimizer) {
    return guarded([&] {
        auto& to = not_null(optimizer, "optimizer");
        const auto chosen = to_rule(rule);
        const auto h =
            hyperparameters == nullptr ? default_hyperparameters(chosen) : from_c(*hyperparameters);
        to = std::make_unique<flashoptim_optimizer>(AnyOptimizer(chosen, h, from_c(options))).release();
    });
}
void flashoptim_destroy(flashoptim_optimizer* optimizer) {
    std::unique_ptr<flashoptim_optimizer>{optimizer}.reset();
}

flashoptim_status flashoptim_set_stream(flashoptim_optimizer* optimizer, void* stream) {
    return guarded([&] { set_cuda_stream(core(optimizer).options().device.get(), stream); });
}

flashoptim_status flashoptim_add_group(flashoptim_optimizer* optimizer,
                                       const flashoptim_hyperparameters* hyperparameters, size_t* group) {
    return guarded([&] {
        write(group, core(optimizer).add_group(from_c(not_null(hyperparameters, "hyperparameters"))));
    });
}
flashoptim_status flashoptim_add_parameter(flashoptim_optimizer* optimizer, const flashoptim_tensor* weight,
                                           const char* name, size_t group, const flashoptim_shard* shard,
                                           size_t* parameter) {
    return guarded([&] {
        const auto view = from_c(not_null(weight, "weight"));
        write(parameter, core(optimizer).add_parameter(view, name == nullptr ? "" : name, group,
                                                       from_c(shard, weight->ndim)));
    });
}
flashoptim_status flashoptim_parameter_count(const flashoptim_optimizer* optimizer, size_t* count) {
    return guarded([&] { write(count, core(optimizer).parameter_count()); });
}

flashoptim_status flashoptim_get_hyperparameters(const flashoptim_optimizer* optimizer, size_t group,
                                                 flashoptim_hyperparameters* hyperparameters) {
    return guarded([&] {
        const auto& h = core(optimizer).hyperparameters(group);
        const auto size = not_null(hyperparameters, "hyperparameters").size;
        write_struct(to_c(h), size, kFirstHyperparameters, hyperparameters, "hyperparameters");
    });
}
flashoptim_status flashoptim_set_hyperparameters(flashoptim_optimizer* optimizer, size_t group,
                                                 const flashoptim_hyperparameters* hyperparameters) {
    return guarded([&] {
        core(optimizer).set_hyperparameters(group, from_c(not_null(hyperparameters, "hyperparameters")));
    });
}
flashoptim_status flashoptim_set_learning_rate(flashoptim_optimizer* optimizer, double learning_rate) {
    return guarded([&] { core(optimizer).set_learning_rate(learning_rate); });
}
flashoptim_status flashoptim_set_group_learning_rate(flashoptim_optimizer* optimizer, size_t group,
                                                     double learning_rate) {
    return guarded([&] { core(optimizer).set_learning_rate(group, learning_rate); });
}

flashoptim_status flashoptim_set_gradient(flashoptim_optimizer* optimizer, size_t parameter,
                                          const flashoptim_tensor* gradient) {
    return guarded([&] { core(optimizer).set_gradient(parameter, from_c(not_null(gradient, "gradient"))); });
}
flashoptim_status flashoptim_clear_gradient(flashoptim_optimizer* optimizer, size_t parameter) {
    return guarded([&] { core(optimizer).clear_gradient(parameter); });
}
flashoptim_status flashoptim_set_gradient_factor(flashoptim_optimizer* optimizer, double factor) {
    return guarded([&] { core(optimizer).set_gradient_factor(factor); });
}
flashoptim_status flashoptim_set_grad_scale(flashoptim_optimizer* optimizer, const float* scale) {
    return guarded([&] { core(optimizer).set_grad_scale(scale); });
}
flashoptim_status flashoptim_set_found_inf(flashoptim_optimizer* optimizer, const float* found_inf) {
    return guarded([&] { core(optimizer).set_found_inf(found_inf); });
}
flashoptim_status flashoptim_grad_norm(flashoptim_optimizer* optimizer, double* norm) {
    return guarded([&] { write(norm, core(optimizer).grad_norm()); });
}
flashoptim_status flashoptim_clip_grad_norm(flashoptim_optimizer* optimizer, double max_norm,
                                            const double** norm) {
    return guarded([&] { write(norm, core(optimizer).clip_grad_norm(max_norm)); });
}

flashoptim_status flashoptim_step(flashoptim_optimizer* optimizer, uint64_t* bad_elements, int32_t* skipped) {
    return guarded([&] { write_report(core(optimizer).step(), bad_elements, skipped); });
}
flashoptim_status flashoptim_step_parameter(flashoptim_optimizer* optimizer, size_t parameter,
                                            uint64_t* bad_elements, int32_t* skipped) {
    return guarded([&] { write_report(core(optimizer).step_parameter(parameter), bad_elements, skipped); });
}
flashoptim_status flashoptim_step_count(const flashoptim_optimizer* optimizer, size_t parameter,
                                        int64_t* steps) {
    return guarded([&] { write(steps, core(optimizer).step_count(parameter)); });
}
flashoptim_status flashoptim_set_step_count(flashoptim_optimizer* optimizer, size_t parameter,
                                            int64_t steps) {
    return guarded([&] { core(optimizer).set_step_count(parameter, steps); });
}
flashoptim_status flashoptim_bad_elements(const flashoptim_optimizer* optimizer, size_t parameter,
                                          uint64_t* count) {
    return guarded([&] { write(count, core(optimizer).bad_elements(parameter)); });
}

flashoptim_status flashoptim_copy_master(const flashoptim_optimizer* optimizer, size_t parameter,
                                         float* values, size_t count) {
    return guarded([&] { core(optimizer).copy_master(parameter, span_of(values, count)); });
}
flashoptim_status flashoptim_set_master(flashoptim_optimizer* optimizer, size_t parameter,
                                        const float* values, size_t count) {
    return guarded([&] { core(optimizer).set_master(parameter, span_of(values, count)); });
}
flashoptim_status flashoptim_refresh_master(flashoptim_optimizer* optimizer, size_t parameter) {
    return guarded([&] { core(optimizer).refresh_masters(parameter); });
}
flashoptim_status flashoptim_refresh_masters(flashoptim_optimizer* optimizer) {
    return guarded([&] { core(optimizer).refresh_masters(); });
}
flashoptim_status flashoptim_copy_moment(const flashoptim_optimizer* optimizer, size_t parameter,
                                         int32_t moment, float* values, size_t count) {
    return guarded([&] {
        const auto& from = core(optimizer);
        const bool is_first = to_moment(moment) == Moment::kFirst;
        const auto held = is_first ? from.first_moment(parameter) : from.second_moment(parameter);
        if (!(is_first ? keeps_first_moment(from, parameter) : keeps_second_moment(from))) {
            throw InvalidArgument(from.name(parameter) + " has no " + (is_first ? "first" : "second") +
                                  " moment: " + std::string(name_of(from.rule())) +
                                  " keeps none; ask for one that the rule has");
        }
        if (held.size() != count) {
            throw InvalidArgument(from.name(parameter) + " has " + std::to_string(held.size()) +
                                  " values of this moment, not " + std::to_string(count));
        }
        std::ranges::copy(held, span_of(values, count).begin());
    });
}

flashoptim_status flashoptim_save(flashoptim_optimizer* optimizer, const char* folder, int32_t weights) {
    return guarded(
        [&] { save_optimizer(core(optimizer), &not_null(folder, "folder"), {.weights = weights != 0}); });
}
flashoptim_status flashoptim_load(flashoptim_optimizer* optimizer, const char* folder, int32_t weights,
                                  int32_t convert, size_t* converted) {
    return guarded([&] {
        const auto report = load_optimizer(core(optimizer), &not_null(folder, "folder"),
                                           {.weights = weights != 0, .convert = convert != 0});
        write(converted, report.converted.size());
    });
}

flashoptim_status flashoptim_memory_report(const flashoptim_optimizer* optimizer, flashoptim_memory* report) {
    return guarded([&] {
        const auto c = to_c(core(optimizer).memory_report());
        write_struct(c, not_null(report, "report").size, kFirstMemory, report, "report");
    });
}

flashoptim_status flashoptim_scale_count(int32_t format, const flashoptim_tensor* values, size_t* count) {
    return guarded([&] { write(count, moment_plan(format, not_null(values, "values")).scales); });
}
flashoptim_status flashoptim_quantize_moment(int32_t format, int32_t moment, const flashoptim_tensor* values,
                                             void* codes, uint16_t* scales, size_t scale_count) {
    return guarded([&] {
        const auto plan = moment_plan(format, not_null(values, "values"));
        quantize_moment(to_moment(moment), plan.storage, plan.layout,
                        span_of(static_cast<const float*>(values->data), plan.numel),
                        span_of(static_cast<std::byte*>(codes), plan.numel), span_of(scales, scale_count));
    });
}
flashoptim_status flashoptim_dequantize_moment(int32_t format, int32_t moment, const void* codes,
                                               const uint16_t* scales, size_t scale_count,
                                               const flashoptim_tensor* values) {
    return guarded([&] {
        const auto plan = moment_plan(format, not_null(values, "values"));
        dequantize_moment(to_moment(moment), plan.storage, plan.layout,
                          span_of(static_cast<const std::byte*>(codes), plan.numel),
                          span_of(scales, scale_count),
                          span_of(static_cast<float*>(values->data), plan.numel));
    });
}

flashoptim_status flashoptim_split_weights(int32_t format, int32_t dtype, int32_t master_weight_bits,
                                           size_t count, const float* masters, void* weights,
                                           void* corrections) {
    return guarded([&] {
        const auto plan = weight_plan(format, dtype, master_weight_bits, count);
        if (count == 0) return;
        check_weight_buffers(plan, masters, weights, corrections);
        split_weights(plan, {masters, count}, weights, corrections);
    });
}
flashoptim_status flashoptim_join_weights(int32_t format, int32_t dtype, int32_t master_weight_bits,
                                          size_t count, const void* weights, const void* corrections,
                                          float* masters) {
    return guarded([&] {
        const auto plan = weight_plan(format, dtype, master_weight_bits, count);
        if (count == 0) return;
        check_weight_buffers(plan, masters, weights, corrections);
        join_weights(plan, weights, corrections, {masters, count});
    });
}

}  // extern "C"
