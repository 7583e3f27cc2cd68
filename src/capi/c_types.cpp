// Translation between the C interface's plain data and the library's.
#include "c_types.h"

#include <vector>

#include "c_device.h"

namespace flashoptim::capi {

namespace {

template <class Enum>
Enum to_enum(std::int32_t value, Enum last, const char* name) {
    if (value < 0 || value > static_cast<std::int32_t>(last)) {
        throw InvalidArgument(std::string(name) + " is " + std::to_string(value) +
                              ": use an enumerator of flashoptim/c_api.h");
    }
    return static_cast<Enum>(value);
}
Format to_format(std::int32_t value) { return to_enum(value, Format::kFloat32, "format"); }
DType to_dtype(std::int32_t value) { return to_enum(value, DType::kFloat16, "dtype"); }

std::vector<std::int64_t> extents(const std::int64_t* values, std::int32_t ndim, const char* name) {
    if (ndim == 0) return {};
    not_null(values, name);
    return {values, values + ndim};
}
std::int32_t dimensions(const flashoptim_tensor& tensor) {
    if (tensor.ndim >= 0) return tensor.ndim;
    throw InvalidArgument("ndim is " + std::to_string(tensor.ndim) + ": it must not be negative");
}

}  // namespace

Rule to_rule(std::int32_t value) { return to_enum(value, Rule::kLion, "rule"); }
Moment to_moment(std::int32_t value) { return to_enum(value, Moment::kSecond, "moment"); }

flashoptim_options to_c(const OptimizerOptions& o) {
    flashoptim_options c{};
    c.size = sizeof c;
    c.format = static_cast<std::int32_t>(o.storage.format);
    c.master_weight_bits = o.storage.master_weight_bits;
    c.quantize = o.storage.quantize ? 1 : 0;
    c.nonfinite = static_cast<std::int32_t>(o.nonfinite);
    c.check_gradients = o.check_gradients ? 1 : 0;
    c.threads = o.threads;
    c.backend = static_cast<std::int32_t>(o.backend);
    c.min_quantized_numel = o.storage.min_quantized_numel;
    c.min_quantized_numel_1d = o.storage.min_quantized_numel_1d;
    return c;
}
OptimizerOptions from_c(const flashoptim_options* options) {
    OptimizerOptions o;
    if (options == nullptr) return o;
    const auto c = read_struct(options, kFirstOptions, to_c(o), "options");
    o.storage.format = to_format(c.format);
    o.storage.master_weight_bits = c.master_weight_bits;
    o.storage.quantize = c.quantize != 0;
    o.nonfinite = to_enum(c.nonfinite, NonFinite::kError, "nonfinite");
    o.check_gradients = c.check_gradients != 0;
    o.threads = c.threads;
    o.backend = to_enum(c.backend, Backend::kNeon, "backend");
    o.storage.min_quantized_numel = c.min_quantized_numel;
    o.storage.min_quantized_numel_1d = c.min_quantized_numel_1d;
    if (to_enum(c.place, FLASHOPTIM_CUDA, "place") == FLASHOPTIM_CUDA) {
        o.device = make_cuda_device(c.device, c.stream);
    }
    return o;
}

flashoptim_hyperparameters to_c(const Hyperparameters& h) {
    flashoptim_hyperparameters c{};
    c.size = sizeof c;
    c.learning_rate = h.learning_rate;
    c.beta1 = h.beta1;
    c.beta2 = h.beta2;
    c.epsilon = h.epsilon;
    c.weight_decay = h.weight_decay;
    c.momentum = h.momentum;
    c.dampening = h.dampening;
    c.initial_learning_rate = h.initial_learning_rate;
    c.nesterov = h.nesterov ? 1 : 0;
    c.maximize = h.maximize ? 1 : 0;
    c.fully_decoupled = h.fully_decoupled ? 1 : 0;
    return c;
}
Hyperparameters from_c(const flashoptim_hyperparameters& hyperparameters) {
    const auto c =
        read_struct(&hyperparameters, kFirstHyperparameters, to_c(Hyperparameters{}), "hyperparameters");
    Hyperparameters h;
    h.learning_rate = c.learning_rate;
    h.beta1 = c.beta1;
    h.beta2 = c.beta2;
    h.epsilon = c.epsilon;
    h.weight_decay = c.weight_decay;
    h.momentum = c.momentum;
    h.dampening = c.dampening;
    h.initial_learning_rate = c.initial_learning_rate;
    h.nesterov = c.nesterov != 0;
    h.maximize = c.maximize != 0;
    h.fully_decoupled = c.fully_decoupled != 0;
    return h;
}

Hyperparameters default_hyperparameters(Rule rule) {
    OptimizerOptions options;
    options.threads = 1;
    auto defaults = [&] {
        switch (rule) {
            case Rule::kSGD:
                return SGD({}, options).hyperparameters();
            case Rule::kSGDW:
                return SGDW({}, options).hyperparameters();
            case Rule::kAdam:
                return Adam({}, options).hyperparameters();
            case Rule::kAdamW:
                return AdamW({}, options).hyperparameters();
            case Rule::kLion:
                return Lion({}, options).hyperparameters();
        }
        throw InvalidArgument("rule does not exist: use an enumerator of flashoptim/c_api.h");
    }();
    defaults.initial_learning_rate = 0.0;  // it follows from the learning rate that the caller sets
    return defaults;
}

TensorView from_c(const flashoptim_tensor& tensor) {
    const auto ndim = dimensions(tensor);
    TensorView view;
    view.data = tensor.data;
    view.dtype = to_dtype(tensor.dtype);
    view.shape = extents(tensor.shape, ndim, "shape");
    if (tensor.strides != nullptr) view.strides = extents(tensor.strides, ndim, "strides");
    return view;
}
std::optional<Shard> from_c(const flashoptim_shard* shard, std::int32_t ndim) {
    if (shard == nullptr) return std::nullopt;
    Shard result;
    result.whole_shape = extents(shard->whole_shape, ndim, "whole_shape");
    if (shard->whole_strides != nullptr)
        result.whole_strides = extents(shard->whole_strides, ndim, "whole_strides");
    result.offset = extents(shard->offset, ndim, "offset");
    return result;
}

flashoptim_memory to_c(const MemoryReport& report) {
    flashoptim_memory c{};
    c.weights = report.weights;
    c.corrections = report.corrections;
    c.moments = report.moments;
    c.scales = report.scales;
    c.gradients = report.gradients;
    c.total = report.total();
    c.parameters = report.parameters;
    return c;
}

MomentPlan moment_plan(std::int32_t format, const flashoptim_tensor& values) {
    const auto view = from_c(values);
    if (view.dtype != DType::kFloat32) throw InvalidArgument("values must be float32");
    MomentPlan plan{};
    plan.layout = layout_of(view, "values");
    plan.numel = static_cast<std::size_t>(plan.layout.numel);
    switch (to_format(format)) {
        case Format::kNative:
            plan.storage = MomentStorage::kNative;
            plan.scales = static_cast<std::size_t>(plan.layout.rows * plan.layout.groups_per_row());
            return plan;
        case Format::kPaper:
            plan.storage = MomentStorage::kPaper;
            plan.scales = (plan.numel + kGroupSize - 1) / kGroupSize;
            return plan;
        case Format::kFloat32:
            break;
    }
    throw InvalidArgument("format is fp32, which has no codes: use native or paper");
}

StoragePlan weight_plan(std::int32_t format, std::int32_t dtype, std::int32_t bits, std::size_t count) {
    StorageOptions options;
    options.format = to_format(format);
    options.master_weight_bits = bits;
    const auto layout =
        layout_of({nullptr, to_dtype(dtype), {static_cast<std::int64_t>(count)}, {}}, "weights");
    return plan_storage(Rule::kSGD, {}, options, to_dtype(dtype), layout, "weights");
}
void check_weight_buffers(const StoragePlan& plan, const void* masters, const void* weights,
                          const void* corrections) {
    not_null(static_cast<const char*>(masters), "masters");
    not_null(static_cast<const char*>(weights), "weights");
    if (plan.correction.count != 0) not_null(static_cast<const char*>(corrections), "corrections");
}

}  // namespace flashoptim::capi
