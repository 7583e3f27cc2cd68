// The C API of optimizer.h, quantize.h and of saving optimizers. It checks and translates; it computes
// nothing.
#include "flashoptim/c_api.h"

#include <algorithm>
#include <memory>
#include <string>

#include "c_device.h"
#include "c_types.h"
#include "flashoptim/checkpoint.h"
#include "flashoptim/version.h"
#include "handles.h"
#include "last_error.h"

using namespace flashoptim;
using namespace flashoptim::capi;

namespace {

/// Checks the address of a result, which may be NULL. It runs before any work, so that a call does all of it
/// or nothing.
template <class T>
T* wanted(T* to, const char* name) {
    return aligned(to, name);
}
template <class T>
void write(T* to, T value) {
    if (to != nullptr) *to = value;
}
std::shared_ptr<Optimizer> core(flashoptim_optimizer* handle) { return Handles::instance().at(handle); }
std::shared_ptr<const Optimizer> core(const flashoptim_optimizer* handle) {
    return Handles::instance().at(handle);
}

void write_report(const StepReport& report, std::uint64_t* bad_elements, std::int32_t* skipped) {
    write(bad_elements, report.bad_elements);
    write(skipped, std::int32_t{report.skipped ? 1 : 0});
}
/// The path of a folder. @throws InvalidArgument for NULL or an empty name.
std::string folder_of(const char* folder) {
    auto name = text_of(&not_null(folder, "folder"), "folder");
    if (name.empty()) throw InvalidArgument("folder is empty: name a folder");
    return name;
}

}  // namespace

extern "C" {

std::int32_t flashoptim_abi_version(void) { return FLASHOPTIM_ABI_VERSION; }
const char* flashoptim_version(void) { return FLASHOPTIM_VERSION_STRING; }
const char* flashoptim_last_error(void) { return capi::last_error(); }

std::int32_t flashoptim_cuda_device_count(void) { return capi::cuda_device_count(); }

flashoptim_status flashoptim_options_init(flashoptim_options* options, size_t size) {
    return guarded(
        [&] { write_struct(to_c(OptimizerOptions{}), size, not_null(options, "options"), "options"); });
}
flashoptim_status flashoptim_hyperparameters_init(flashoptim_hyperparameters* hyperparameters, size_t size,
                                                  std::int32_t rule) {
    return guarded([&] {
        write_struct(to_c(default_hyperparameters(to_rule(rule))), size,
                     not_null(hyperparameters, "hyperparameters"), "hyperparameters");
    });
}

flashoptim_status flashoptim_create(std::int32_t rule, const flashoptim_hyperparameters* hyperparameters,
                                    const flashoptim_options* options, flashoptim_optimizer** optimizer) {
    return guarded([&] {
        auto& to = not_null(optimizer, "optimizer");
        const auto chosen = to_rule(rule);
        const auto h = hyperparameters == nullptr ? default_hyperparameters(chosen)
                                                  : from_c(not_null(hyperparameters, "hyperparameters"));
        to = Handles::instance().add(std::make_shared<Optimizer>(chosen, h, from_c(options)));
    });
}
flashoptim_status flashoptim_destroy(flashoptim_optimizer* optimizer) {
    return guarded([&] { Handles::instance().remove(optimizer); });
}

flashoptim_status flashoptim_set_stream(flashoptim_optimizer* optimizer, void* stream) {
    return guarded([&] { set_cuda_stream(core(optimizer)->options().device.get(), stream); });
}

flashoptim_status flashoptim_add_group(flashoptim_optimizer* optimizer,
                                       const flashoptim_hyperparameters* hyperparameters, size_t* group) {
    return guarded([&] {
        auto* const to = wanted(group, "group");
        write(to, core(optimizer)->add_group(from_c(not_null(hyperparameters, "hyperparameters"))));
    });
}
flashoptim_status flashoptim_add_parameter(flashoptim_optimizer* optimizer, const flashoptim_tensor* weight,
                                           const char* name, size_t group, const flashoptim_shard* shard,
                                           size_t* parameter) {
    return guarded([&] {
        auto* const to = wanted(parameter, "parameter");
        const auto view = from_c(not_null(weight, "weight"), "weight");
        const auto part = from_c(shard, static_cast<std::int32_t>(view.shape.size()));
        write(to, core(optimizer)->add_parameter(view, text_of(name, "name"), group, part));
    });
}
flashoptim_status flashoptim_parameter_count(const flashoptim_optimizer* optimizer, size_t* count) {
    return guarded([&] { write(wanted(count, "count"), core(optimizer)->parameter_count()); });
}

flashoptim_status flashoptim_get_hyperparameters(const flashoptim_optimizer* optimizer, size_t group,
                                                 flashoptim_hyperparameters* hyperparameters) {
    return guarded([&] {
        auto& to = not_null(hyperparameters, "hyperparameters");
        write_struct(to_c(core(optimizer)->hyperparameters(group)), to.size, to, "hyperparameters");
    });
}
flashoptim_status flashoptim_set_hyperparameters(flashoptim_optimizer* optimizer, size_t group,
                                                 const flashoptim_hyperparameters* hyperparameters) {
    return guarded([&] {
        core(optimizer)->set_hyperparameters(group, from_c(not_null(hyperparameters, "hyperparameters")));
    });
}
flashoptim_status flashoptim_set_learning_rate(flashoptim_optimizer* optimizer, double learning_rate) {
    return guarded([&] { core(optimizer)->set_learning_rate(learning_rate); });
}
flashoptim_status flashoptim_set_group_learning_rate(flashoptim_optimizer* optimizer, size_t group,
                                                     double learning_rate) {
    return guarded([&] { core(optimizer)->set_learning_rate(group, learning_rate); });
}

flashoptim_status flashoptim_set_gradient(flashoptim_optimizer* optimizer, size_t parameter,
                                          const flashoptim_tensor* gradient) {
    return guarded([&] {
        core(optimizer)->set_gradient(parameter, from_c(not_null(gradient, "gradient"), "gradient"));
    });
}
flashoptim_status flashoptim_clear_gradient(flashoptim_optimizer* optimizer, size_t parameter) {
    return guarded([&] { core(optimizer)->clear_gradient(parameter); });
}
flashoptim_status flashoptim_set_gradient_factor(flashoptim_optimizer* optimizer, double factor) {
    return guarded([&] { core(optimizer)->set_gradient_factor(factor); });
}
flashoptim_status flashoptim_set_grad_scale(flashoptim_optimizer* optimizer, const float* scale) {
    return guarded([&] { core(optimizer)->set_grad_scale(aligned(scale, "scale")); });
}
flashoptim_status flashoptim_set_found_inf(flashoptim_optimizer* optimizer, const float* found_inf) {
    return guarded([&] { core(optimizer)->set_found_inf(aligned(found_inf, "found_inf")); });
}
flashoptim_status flashoptim_grad_norm(flashoptim_optimizer* optimizer, double* norm) {
    return guarded([&] { write(wanted(norm, "norm"), core(optimizer)->grad_norm()); });
}
flashoptim_status flashoptim_clip_grad_norm(flashoptim_optimizer* optimizer, double max_norm,
                                            const double** norm) {
    return guarded([&] {
        auto* const to = wanted(norm, "norm");
        write(to, core(optimizer)->clip_grad_norm(max_norm));
    });
}

flashoptim_status flashoptim_step(flashoptim_optimizer* optimizer, uint64_t* bad_elements, int32_t* skipped) {
    return guarded([&] {
        auto* const bad = wanted(bad_elements, "bad_elements");
        auto* const none = wanted(skipped, "skipped");
        write_report(core(optimizer)->step(), bad, none);
    });
}
flashoptim_status flashoptim_step_parameter(flashoptim_optimizer* optimizer, size_t parameter,
                                            uint64_t* bad_elements, int32_t* skipped) {
    return guarded([&] {
        auto* const bad = wanted(bad_elements, "bad_elements");
        auto* const none = wanted(skipped, "skipped");
        write_report(core(optimizer)->step_parameter(parameter), bad, none);
    });
}
flashoptim_status flashoptim_step_count(const flashoptim_optimizer* optimizer, size_t parameter,
                                        int64_t* steps) {
    return guarded([&] { write(wanted(steps, "steps"), core(optimizer)->step_count(parameter)); });
}
flashoptim_status flashoptim_set_step_count(flashoptim_optimizer* optimizer, size_t parameter,
                                            int64_t steps) {
    return guarded([&] { core(optimizer)->set_step_count(parameter, steps); });
}
flashoptim_status flashoptim_bad_elements(const flashoptim_optimizer* optimizer, size_t parameter,
                                          uint64_t* count) {
    return guarded([&] { write(wanted(count, "count"), core(optimizer)->bad_elements(parameter)); });
}

flashoptim_status flashoptim_copy_master(const flashoptim_optimizer* optimizer, size_t parameter,
                                         float* values, size_t count) {
    return guarded([&] { core(optimizer)->copy_master(parameter, span_of(values, count, "values")); });
}
flashoptim_status flashoptim_set_master(flashoptim_optimizer* optimizer, size_t parameter,
                                        const float* values, size_t count) {
    return guarded([&] { core(optimizer)->set_master(parameter, span_of(values, count, "values")); });
}
flashoptim_status flashoptim_refresh_master(flashoptim_optimizer* optimizer, size_t parameter) {
    return guarded([&] { core(optimizer)->refresh_masters(parameter); });
}
flashoptim_status flashoptim_refresh_masters(flashoptim_optimizer* optimizer) {
    return guarded([&] { core(optimizer)->refresh_masters(); });
}
const char* flashoptim_rule_name(std::int32_t rule) {
    return rule >= 0 && rule < kRuleCount ? kRules[static_cast<std::size_t>(rule)].name.data() : nullptr;
}
const char* flashoptim_moment_name(std::int32_t rule, std::int32_t moment) {
    if (flashoptim_rule_name(rule) == nullptr || moment < 0 || moment >= kMaxMoments) return nullptr;
    const auto name = buffer_name(static_cast<Rule>(rule), codes_place(moment));
    return name.empty() ? nullptr : name.data();
}
flashoptim_status flashoptim_copy_moment(const flashoptim_optimizer* optimizer, size_t parameter,
                                         int32_t moment, float* values, size_t count) {
    return guarded([&] {
        const auto from = core(optimizer);
        const auto to = span_of(values, count, "values");
        const auto held = from->moment(parameter, moment);
        const auto& traits = traits_of(from->rule());
        const bool is_kept = moment >= 0 && traits.keeps(static_cast<std::size_t>(moment),
                                                         from->hyperparameters(from->group_of(parameter)));
        if (!is_kept) {
            std::string names;
            for (const auto& one : traits.moments)
                names += (names.empty() ? "" : ", ") + std::string(one.name);
            throw InvalidArgument(from->name(parameter) + " has no moment " + std::to_string(moment) + ": " +
                                  std::string(traits.name) + " keeps " + names +
                                  (traits.moments[0].needs != nullptr ? ", with a momentum" : "") +
                                  ", counted from 0; ask for one that it has");
        }
        if (held.size() != count) {
            throw InvalidArgument(from->name(parameter) + " has " + std::to_string(held.size()) +
                                  " values of this moment, not " + std::to_string(count) +
                                  ": give as many as the weight has elements");
        }
        std::copy(held.begin(), held.end(), to.begin());
    });
}

flashoptim_status flashoptim_save(flashoptim_optimizer* optimizer, const char* folder, int32_t weights) {
    return guarded([&] {
        const bool with_weights = to_bool(weights, "weights");
        save_optimizer(*core(optimizer), folder_of(folder), {.weights = with_weights});
    });
}
flashoptim_status flashoptim_load(flashoptim_optimizer* optimizer, const char* folder, int32_t weights,
                                  int32_t convert, size_t* converted) {
    return guarded([&] {
        auto* const to = wanted(converted, "converted");
        const LoadOptions options{.weights = to_bool(weights, "weights"),
                                  .convert = to_bool(convert, "convert")};
        write(to, load_optimizer(*core(optimizer), folder_of(folder), options).converted.size());
    });
}

flashoptim_status flashoptim_memory_report(const flashoptim_optimizer* optimizer, flashoptim_memory* report) {
    return guarded([&] {
        auto& to = not_null(report, "report");
        write_struct(to_c(core(optimizer)->memory_report()), to.size, to, "report");
    });
}

flashoptim_status flashoptim_scale_count(int32_t format, const flashoptim_tensor* values, size_t* count) {
    return guarded(
        [&] { write(wanted(count, "count"), coded_moment(format, not_null(values, "values")).scales); });
}
flashoptim_status flashoptim_quantize_moment(int32_t format, int32_t moment, const flashoptim_tensor* values,
                                             void* codes, uint16_t* scales, size_t scale_count) {
    return guarded([&] {
        const auto plan = coded_moment(format, not_null(values, "values"));
        quantize_moment(to_moment_kind(moment), plan.storage, plan.layout,
                        span_of(static_cast<const float*>(values->data), plan.numel, "values->data"),
                        span_of(static_cast<std::byte*>(codes), plan.numel, "codes"),
                        span_of(scales, scale_count, "scales"));
    });
}
flashoptim_status flashoptim_dequantize_moment(int32_t format, int32_t moment, const void* codes,
                                               const uint16_t* scales, size_t scale_count,
                                               const flashoptim_tensor* values) {
    return guarded([&] {
        const auto plan = coded_moment(format, not_null(values, "values"));
        dequantize_moment(to_moment_kind(moment), plan.storage, plan.layout,
                          span_of(static_cast<const std::byte*>(codes), plan.numel, "codes"),
                          span_of(scales, scale_count, "scales"),
                          span_of(static_cast<float*>(values->data), plan.numel, "values->data"));
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
