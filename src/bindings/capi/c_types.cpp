// Translates between the plain data of the C interface and the types of the library.
#include "c_types.h"

#include <cstring>
#include <string_view>
#include <vector>

#include "c_device.h"
#include "flashoptim/system/utf8.h"

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
    const auto given = span_of(values, static_cast<std::size_t>(ndim), name);
    return {given.begin(), given.end()};
}
std::int32_t checked_ndim(std::int32_t ndim) {
    if (ndim >= 0 && ndim <= FLASHOPTIM_MAX_DIMENSIONS) return ndim;
    throw InvalidArgument("ndim is " + std::to_string(ndim) + ": it must be from 0 to " +
                          std::to_string(FLASHOPTIM_MAX_DIMENSIONS));
}
/// Calls visit(field, offset) for every hyperparameter, with its offset in flashoptim_hyperparameters. That
/// struct has the fields of the table of rules in the same order after `size`, flags as int32_t. Returns the
/// size of such a struct. A test compares the names of the C header with the table.
template <class Visit>
constexpr std::size_t for_each_c_field(Visit visit) {
    std::size_t place = sizeof(std::size_t);
    for (const auto& field : kHyperparameterFields) {
        const std::size_t bytes = field.number != nullptr ? sizeof(double) : sizeof(std::int32_t);
        place = (place + bytes - 1) / bytes * bytes;
        visit(field, place);
        place += bytes;
    }
    return (place + alignof(double) - 1) / alignof(double) * alignof(double);
}
static_assert(for_each_c_field([](const HyperparameterField&, std::size_t) {}) ==
                  sizeof(flashoptim_hyperparameters),
              "flashoptim_hyperparameters has the fields of the table, in its order");

void check_reserved(std::int32_t value, const char* name) {
    if (value == 0) return;
    throw InvalidArgument(std::string(name) + " is " + std::to_string(value) +
                          ": it must be 0; fill the struct by its init function");
}

}  // namespace

Rule to_rule(std::int32_t value) { return to_enum(value, kRules.back().rule, "rule"); }
bool to_bool(std::int32_t value, const char* name) {
    if (value == 0 || value == 1) return value == 1;
    throw InvalidArgument(std::string(name) + " is " + std::to_string(value) + ": it must be 0 or 1");
}
std::string text_of(const char* text, const char* name) {
    if (text == nullptr) return {};
    constexpr std::size_t kMost = FLASHOPTIM_MAX_TEXT_BYTES;
    std::string_view rest(text, ::strnlen(text, kMost));
    if (rest.size() == kMost) {
        throw InvalidArgument(std::string(name) + " has " + std::to_string(kMost) +
                              " bytes or more: give a shorter one, which ends in a 0");
    }
    const std::string whole(rest);
    while (!rest.empty()) {
        const auto length = utf8_length(rest);
        if (length == 0) {
            throw InvalidArgument(std::string(name) + " is not UTF-8 at byte " +
                                  std::to_string(whole.size() - rest.size()) + ": encode it as UTF-8");
        }
        rest.remove_prefix(length);
    }
    return whole;
}
MomentKind to_moment_kind(std::int32_t value) { return to_enum(value, MomentKind::kSquared, "moment"); }

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
    const auto c = read_struct(not_null(options, "options"), to_c(o), "options");
    check_reserved(c.reserved, "options->reserved");
    o.storage.format = to_format(c.format);
    o.storage.master_weight_bits = c.master_weight_bits;
    o.storage.quantize = to_bool(c.quantize, "quantize");
    o.nonfinite = to_enum(c.nonfinite, NonFinite::kError, "nonfinite");
    o.check_gradients = to_bool(c.check_gradients, "check_gradients");
    o.threads = c.threads;
    o.backend = to_enum(c.backend, Backend::kNeon, "backend");
    o.storage.min_quantized_numel = c.min_quantized_numel;
    o.storage.min_quantized_numel_1d = c.min_quantized_numel_1d;
    if (to_enum(c.place, FLASHOPTIM_CUDA, "place") == FLASHOPTIM_CUDA) {
        o.device = make_cuda_device(c.device, c.stream);
    } else if (c.device != 0 || c.stream != nullptr) {
        throw InvalidArgument(
            "place is FLASHOPTIM_HOST, which has neither device nor stream: set both to 0, or place to "
            "FLASHOPTIM_CUDA");
    }
    return o;
}

flashoptim_hyperparameters to_c(const Hyperparameters& h) {
    flashoptim_hyperparameters c{};
    c.size = sizeof c;
    auto* const bytes = reinterpret_cast<unsigned char*>(&c);
    for_each_c_field([&](const HyperparameterField& field, std::size_t place) {
        if (field.number != nullptr) {
            std::memcpy(bytes + place, &(h.*field.number), sizeof(double));
        } else {
            const std::int32_t flag = h.*field.flag ? 1 : 0;
            std::memcpy(bytes + place, &flag, sizeof flag);
        }
    });
    return c;
}
Hyperparameters from_c(const flashoptim_hyperparameters& hyperparameters) {
    const auto c = read_struct(hyperparameters, to_c(Hyperparameters{}), "hyperparameters");
    check_reserved(c.reserved, "hyperparameters->reserved");
    check_reserved(c.reserved2, "hyperparameters->reserved2");
    Hyperparameters h;
    const auto* const bytes = reinterpret_cast<const unsigned char*>(&c);
    for_each_c_field([&](const HyperparameterField& field, std::size_t place) {
        if (field.number != nullptr) {
            std::memcpy(&(h.*field.number), bytes + place, sizeof(double));
        } else {
            std::int32_t flag = 0;
            std::memcpy(&flag, bytes + place, sizeof flag);
            h.*field.flag = to_bool(flag, std::string(field.name).c_str());
        }
    });
    return h;
}

TensorView from_c(const flashoptim_tensor& tensor, const char* name) {
    const auto c = read_struct(tensor, {}, name);
    const auto ndim = checked_ndim(c.ndim);
    TensorView view;
    view.data = c.data;
    view.dtype = to_dtype(c.dtype);
    view.shape = extents(c.shape, ndim, "shape");
    if (c.strides != FLASHOPTIM_ROW_MAJOR) view.strides = extents(c.strides, ndim, "strides");
    return view;
}
std::optional<Shard> from_c(const flashoptim_shard* shard, std::int32_t ndim) {
    if (shard == FLASHOPTIM_NO_SHARD) return std::nullopt;
    const auto c = read_struct(not_null(shard, "shard"), {}, "shard");
    Shard result;
    result.whole_shape = extents(c.whole_shape, ndim, "whole_shape");
    if (c.whole_strides != FLASHOPTIM_ROW_MAJOR)
        result.whole_strides = extents(c.whole_strides, ndim, "whole_strides");
    result.offset = extents(c.offset, ndim, "offset");
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

CodedMoment coded_moment(std::int32_t format, const flashoptim_tensor& values) {
    const auto view = from_c(values, "values");
    if (view.dtype != DType::kFloat32) throw InvalidArgument("values must be float32");
    const auto given = to_format(format);
    if (given == Format::kFloat32) {
        throw InvalidArgument("format is fp32, which has no codes: use native or paper");
    }
    CodedMoment moment{};
    moment.storage = given == Format::kNative ? MomentStorage::kNative : MomentStorage::kPaper;
    moment.layout = layout_of(view, "values");
    moment.numel = static_cast<std::size_t>(moment.layout.numel);
    const auto plan = plan_moment(MomentKind::kSigned, moment.storage, moment.layout, DType::kFloat32);
    moment.scales = static_cast<std::size_t>(plan.scales.count);
    return moment;
}

StoragePlan weight_plan(std::int32_t format, std::int32_t dtype, std::int32_t bits, std::size_t count) {
    constexpr auto kMost = static_cast<std::size_t>(PTRDIFF_MAX) / sizeof(float);
    if (count > kMost) {
        throw InvalidArgument("count is " + std::to_string(count) + ", more than memory can have: check it");
    }
    StorageOptions options;
    options.format = to_format(format);
    options.master_weight_bits = bits;
    const auto layout =
        layout_of({nullptr, to_dtype(dtype), {static_cast<std::int64_t>(count)}, {}}, "weights");
    return plan_storage(Rule::kSGD, {}, options, to_dtype(dtype), layout, "weights");
}
void check_weight_buffers(const StoragePlan& plan, const float* masters, const void* weights,
                          const void* corrections) {
    const auto check = [](const void* buffer, DType dtype, const char* name) {
        not_null(static_cast<const std::byte*>(buffer), name);
        if (reinterpret_cast<std::uintptr_t>(buffer) % size_of(dtype) == 0) return;
        throw InvalidArgument(std::string(name) + " is not aligned: its address must be a multiple of " +
                              std::to_string(size_of(dtype)));
    };
    not_null(masters, "masters");
    check(weights, plan.weight_dtype, "weights");
    if (plan.correction().count != 0) check(corrections, plan.correction().dtype, "corrections");
}

}  // namespace flashoptim::capi
