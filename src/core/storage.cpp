// Plans which buffers a parameter has.
#include <string>

#include "flashoptim/error.h"
#include "flashoptim/step.h"

namespace flashoptim {

namespace {

bool keeps_fp32_moments(const StorageOptions& options, const Layout& layout) {
    if (options.format == Format::kFloat32 || !options.quantize) return true;
    if (options.format == Format::kPaper) return false;
    if (layout.one_dimensional) return layout.whole_numel < options.min_quantized_numel_1d;
    return layout.whole_row_length < kMinQuantizedRow || layout.whole_numel < options.min_quantized_numel;
}

int checked_master_bits(const StorageOptions& options, DType dtype, std::string_view name) {
    const int bits = options.master_weight_bits;
    const bool paper = options.format == Format::kPaper;
    if (bits != 0 && bits != 24 && bits != 32 && (bits != 16 || paper)) {
        throw InvalidArgument(std::string(name) + ": master_weight_bits is " + std::to_string(bits) +
                              (paper ? "; the paper format has 0, 24 and 32" : "; choose 0, 16, 24 or 32"));
    }
    return dtype == DType::kFloat32 ? 0 : bits;
}

}  // namespace

StoragePlan plan_storage(Rule rule, const Hyperparameters& hyperparameters, const StorageOptions& options,
                         DType weight_dtype, const Layout& layout, std::string_view name) {
    if (!is_floating(weight_dtype)) {
        throw InvalidArgument(std::string(name) + " is " + std::string(name_of(weight_dtype)) +
                              ": weights must be float32, bfloat16 or float16");
    }
    if (options.min_quantized_numel < 0 || options.min_quantized_numel_1d < 0) {
        throw InvalidArgument(std::string(name) + ": min_quantized_numel is " +
                              std::to_string(options.min_quantized_numel) + " and min_quantized_numel_1d " +
                              std::to_string(options.min_quantized_numel_1d) + ": they must not be negative");
    }
    StoragePlan plan;
    plan.weight_dtype = weight_dtype;
    plan.master_weight_bits = checked_master_bits(options, weight_dtype, name);
    plan.paper_arithmetic = options.format == Format::kPaper;
    if (plan.master_weight_bits == 24) plan.correction = {DType::kInt8, layout.numel};
    if (plan.master_weight_bits == 32) plan.correction = {DType::kInt16, layout.numel};

    const bool is_sgd = rule == Rule::kSGD || rule == Rule::kSGDW;
    const bool has_first = !is_sgd || hyperparameters.momentum != 0.0;
    const bool has_second = rule == Rule::kAdam || rule == Rule::kAdamW;
    if (keeps_fp32_moments(options, layout)) {
        plan.moments = MomentStorage::kFloat32;
        if (has_first) plan.first = {DType::kFloat32, layout.numel};
        if (has_second) plan.second = {DType::kFloat32, layout.numel};
        return plan;
    }
    const bool paper = options.format == Format::kPaper;
    if (!paper && layout.splits_groups()) {
        throw InvalidArgument(
            std::string(name) + " is a part of a vector of " + std::to_string(layout.whole_numel) +
            " elements that begins at " + std::to_string(layout.column_offset) + " and ends at " +
            std::to_string(layout.column_offset + layout.row_length) +
            ", inside a group of 32: cut it at multiples of 32, or raise min_quantized_numel_1d "
            "above its length");
    }
    plan.moments = paper ? MomentStorage::kPaper : MomentStorage::kNative;
    const auto groups =
        paper ? (layout.numel + kGroupSize - 1) / kGroupSize : layout.rows * layout.groups_per_row();
    const BufferPlan scales{paper ? DType::kFloat16 : DType::kBFloat16, groups};
    if (has_first) {
        plan.first = {DType::kInt8, layout.numel};
        plan.first_scales = scales;
    }
    if (has_second) {
        plan.second = {DType::kUInt8, layout.numel};
        plan.second_scales = scales;
    }
    return plan;
}

}  // namespace flashoptim
