// The number formats on tensors: layouts and plans as rows, encoding and decoding of moments, splitting and
// joining of weights. The CPU does all of it: tensors of other devices are copied to the CPU and the results
// are copied back.
#include "batch.h"
#include "flashoptim/layout.h"
#include "flashoptim/quantize.h"
#include "operators.h"
#include "tables.h"

namespace flashoptim::operators {

namespace {

Layout layout_of_row(const Tensor& row) { return layout_from(integers_of(row.get(), {"layout"})); }

MomentKind moment_kind_from(std::int64_t value) {
    constexpr auto kLast = static_cast<std::int64_t>(MomentKind::kGradient);
    if (value < 0 || value > kLast) {
        refuse("moment is " + std::to_string(value) + ": it must be 0 to " + std::to_string(kLast));
    }
    return static_cast<MomentKind>(value);
}

template <class T>
std::span<T> memory(const View& view, const BufferPlan& plan) {
    return {static_cast<T*>(view.data),
            static_cast<std::size_t>(view.numel) * size_of(plan.dtype) / sizeof(T)};
}
View view_of(const Tensor& tensor, const BufferPlan& plan, const char* name) {
    const auto view = dense_view_of(tensor.get(), plan.dtype, {name});
    check_numel(view, plan.count, {name});
    return view;
}

StoragePlan weight_plan(const View& weights, std::int64_t weight_dtype, std::int64_t bits, bool paper) {
    Layout layout;
    layout.numel = layout.row_length = layout.whole_numel = layout.whole_row_length = weights.numel;
    layout.rows = weights.numel > 0 ? 1 : 0;
    StorageOptions options;
    options.format = paper ? Format::kPaper : Format::kNative;
    options.master_weight_bits = bits_from(bits);
    return plan_storage(Rule::kSGD, {}, options, weight_dtype_from(weight_dtype), layout, "weights");
}
/// A tensor for the corrections. It has no elements if the plan has no corrections.
Tensor empty_correction(const View& like, const StoragePlan& plan) {
    if (plan.correction().count == 0) return empty_flat(0, DType::kInt8);
    return empty_as(like, plan.correction().dtype);
}
std::span<float> floats_of(const View& view) {
    return {static_cast<float*>(view.data), static_cast<std::size_t>(view.numel)};
}
View masters_of(const Tensor& masters) { return dense_view_of(masters.get(), DType::kFloat32, {"masters"}); }

/// Refuses two tensors of different memory order, because corrections are read in the order of the weights.
void check_same_order(const View& a, const View& b, const char* names) {
    if (!a.lies_as(b)) refuse(std::string(names) + " do not lie alike: " + a.text() + ", and " + b.text());
}

}  // namespace

Tensor layout(std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
              std::vector<std::int64_t> whole_shape, std::vector<std::int64_t> whole_strides,
              std::vector<std::int64_t> offset) {
    TensorView tensor;
    tensor.shape = std::move(shape);
    tensor.strides = std::move(strides);
    return make_integers(
        row_of(layout_of(tensor, {std::move(whole_shape), std::move(whole_strides), std::move(offset)})));
}

Tensor plan(const Tensor& layout, std::int64_t rule, const Tensor& hyperparameters, std::int64_t format,
            std::int64_t master_weight_bits, bool quantize, std::int64_t min_numel, std::int64_t min_numel_1d,
            std::int64_t weight_dtype) {
    StorageOptions options;
    options.format = format_from(format);
    options.master_weight_bits = bits_from(master_weight_bits);
    options.quantize = quantize;
    options.min_quantized_numel = min_numel;
    options.min_quantized_numel_1d = min_numel_1d;
    const auto groups = groups_from(hyperparameters);
    if (groups.size() != 1) refuse("hyperparameters needs one row");
    return make_integers(row_of(plan_storage(rule_from(rule), groups.front(), options,
                                             weight_dtype_from(weight_dtype), layout_of_row(layout))));
}

std::tuple<Tensor, Tensor> encode_moment(const Tensor& given, const Tensor& layout_row,
                                         std::int64_t moment_number, std::int64_t storage_number,
                                         std::int64_t weight_dtype_number) {
    const auto device = device_of(given.get());
    const auto values = on_device(given, {});
    const auto layout = layout_of_row(layout_row);
    const auto kind = moment_kind_from(moment_number);
    const auto storage = storage_from(storage_number);
    const auto weight_dtype = weight_dtype_from(weight_dtype_number);
    const auto plan = plan_moment(kind, storage, layout, weight_dtype);
    const auto from = view_of(values, {DType::kFloat32, layout.numel}, "values");
    auto codes = empty_as(from, plan.codes.dtype);
    auto scales = empty_flat(plan.scales.count, plan.scales.dtype);
    quantize_moment(kind, storage, layout, floats_of(from),
                    memory<std::byte>(view_of(codes, plan.codes, "codes"), plan.codes),
                    memory<std::uint16_t>(view_of(scales, plan.scales, "scales"), plan.scales), weight_dtype);
    return {on_device(codes, device), on_device(scales, device)};
}

Tensor decode_moment(const Tensor& given, const Tensor& given_scales, const Tensor& layout_row,
                     std::int64_t moment_number, std::int64_t storage_number,
                     std::int64_t weight_dtype_number) {
    const auto device = device_of(given.get());
    const auto codes = on_device(given, {}), scales = on_device(given_scales, {});
    const auto layout = layout_of_row(layout_row);
    const auto kind = moment_kind_from(moment_number);
    const auto storage = storage_from(storage_number);
    const auto weight_dtype = weight_dtype_from(weight_dtype_number);
    const auto plan = plan_moment(kind, storage, layout, weight_dtype);
    const auto from = view_of(codes, plan.codes, "codes");
    const auto scale_bits = plan.scales.count == 0
                                ? std::span<std::uint16_t>()
                                : memory<std::uint16_t>(view_of(scales, plan.scales, "scales"), plan.scales);
    auto values = empty_as(from, DType::kFloat32);
    dequantize_moment(kind, storage, layout, memory<std::byte>(from, plan.codes), scale_bits,
                      {static_cast<float*>(values.data_ptr()), static_cast<std::size_t>(layout.numel)},
                      weight_dtype);
    return on_device(values, device);
}

void check_moment(const Tensor& given, const Tensor& given_scales, const Tensor& layout_row,
                  const Tensor& plan_row, std::int64_t moment_number) {
    const auto codes = on_device(given, {}), scales = on_device(given_scales, {});
    const auto layout = layout_of_row(layout_row);
    const auto kind = moment_kind_from(moment_number);
    const auto row = integers_of(plan_row.get(), {"plan"});
    if (row.size() != kPlanRow)
        refuse("a plan has " + std::to_string(kPlanRow) + " integers: make it with plan()");
    StoragePlan plan;
    plan.weight_dtype = weight_dtype_from(row[0]);
    plan.paper_arithmetic = row[2] != 0;
    plan.moments = storage_from(row[3]);
    const auto buffers = plan_moment(kind, plan.moments, layout, plan.weight_dtype);
    const auto scale_bits =
        buffers.scales.count == 0
            ? std::span<std::uint16_t>()
            : memory<std::uint16_t>(view_of(scales, buffers.scales, "scales"), buffers.scales);
    flashoptim::check_moment(kind, plan, layout,
                             memory<std::byte>(view_of(codes, buffers.codes, "codes"), buffers.codes),
                             scale_bits, kind == MomentKind::kSquared ? "moment of squares" : "moment");
}

std::tuple<Tensor, Tensor> split_weights(const Tensor& given, std::int64_t weight_dtype,
                                         std::int64_t master_weight_bits, bool paper) {
    const auto masters = on_device(given, {});
    const auto from = masters_of(masters);
    const auto plan = weight_plan(from, weight_dtype, master_weight_bits, paper);
    auto weights = empty_as(from, plan.weight_dtype);
    auto corrections = empty_correction(from, plan);
    flashoptim::split_weights(plan, floats_of(from), weights.data_ptr(), corrections.data_ptr());
    const auto device = device_of(given.get());
    return {on_device(weights, device), on_device(corrections, device)};
}

Tensor join_weights(const Tensor& given, const Tensor& given_corrections, std::int64_t master_weight_bits,
                    bool paper) {
    const auto weights = on_device(given, {}), corrections = on_device(given_corrections, {});
    const auto seen = view_of(weights.get(), {"weights"});
    const auto dtype = floating_dtype_of(seen, {"weights"});
    const auto from = dense_view_of(weights.get(), dtype, {"weights"});
    const auto plan = weight_plan(from, static_cast<std::int64_t>(dtype), master_weight_bits, paper);
    const void* correction = nullptr;
    if (plan.correction().count != 0) {
        const auto view = view_of(corrections, plan.correction(), "corrections");
        check_same_order(from, view, "weights and corrections");
        correction = view.data;
    }
    auto masters = empty_as(from, DType::kFloat32);
    flashoptim::join_weights(plan, from.data, correction,
                             {static_cast<float*>(masters.data_ptr()), static_cast<std::size_t>(from.numel)});
    return on_device(masters, device_of(given.get()));
}

Tensor correction_of(const Tensor& given_masters, const Tensor& given, std::int64_t master_weight_bits,
                     bool paper) {
    const auto masters = on_device(given_masters, {}), weights = on_device(given, {});
    const auto wanted = masters_of(masters);
    const auto seen = view_of(weights.get(), {"weights"});
    const auto dtype = floating_dtype_of(seen, {"weights"});
    const auto from = dense_view_of(weights.get(), dtype, {"weights"});
    check_same_order(from, wanted, "masters and weights");
    const auto plan = weight_plan(from, static_cast<std::int64_t>(dtype), master_weight_bits, paper);
    auto corrections = empty_correction(from, plan);
    flashoptim::correct_weights(plan, floats_of(wanted), from.data, corrections.data_ptr());
    return on_device(corrections, device_of(given.get()));
}

}  // namespace flashoptim::operators
