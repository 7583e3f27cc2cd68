// Plans the buffers of a parameter: plan_moment() and plan_storage().
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

MomentPlan plan_moment(MomentKind kind, MomentStorage storage, const Layout& layout, DType weight_dtype) {
    const auto codes = kind == MomentKind::kSquared ? DType::kUInt8 : DType::kInt8;
    switch (storage) {
        case MomentStorage::kNative:
            if (kind == MomentKind::kSlow) return {{DType::kBFloat16, layout.numel}, {}};
            if (kind == MomentKind::kGradient) return {{weight_dtype, layout.numel}, {}};
            return {{codes, layout.numel}, {DType::kBFloat16, layout.rows * layout.groups_per_row()}};
        case MomentStorage::kPaper:
            return {{codes, layout.numel}, {DType::kFloat16, (layout.numel + kGroupSize - 1) / kGroupSize}};
        case MomentStorage::kFloat32:
            break;
    }
    return {{DType::kFloat32, layout.numel}, {}};
}

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
    if (!is_known(rule)) {
        throw InvalidArgument(std::string(name) + ": rule " + std::to_string(static_cast<int>(rule)) +
                              " does not exist: use an enumerator of the header");
    }
    StoragePlan plan;
    plan.weight_dtype = weight_dtype;
    plan.master_weight_bits = checked_master_bits(options, weight_dtype, name);
    plan.paper_arithmetic = options.format == Format::kPaper;
    const auto& traits = traits_of(rule);
    const bool paper = options.format == Format::kPaper;
    if (paper && !traits.has_paper_order) {
        throw InvalidArgument(std::string(name) + ": " + std::string(traits.name) +
                              " is not a rule of the paper's format: choose native or fp32");
    }
    if (plan.master_weight_bits == 24) plan.at(kCorrectionPlace) = {DType::kInt8, layout.numel};
    if (plan.master_weight_bits == 32) plan.at(kCorrectionPlace) = {DType::kInt16, layout.numel};

    const bool keeps_fp32 = keeps_fp32_moments(options, layout);
    if (!keeps_fp32 && !paper && layout.splits_groups()) {
        throw InvalidArgument(
            std::string(name) + " is a part of a vector of " + std::to_string(layout.whole_numel) +
            " elements that begins at " + std::to_string(layout.column_offset) + " and ends at " +
            std::to_string(layout.column_offset + layout.row_length) +
            ", inside a group of 32: cut it at multiples of 32, or raise min_quantized_numel_1d "
            "above its length");
    }
    plan.moments = keeps_fp32 ? MomentStorage::kFloat32
                   : paper    ? MomentStorage::kPaper
                              : MomentStorage::kNative;
    for (std::size_t n = 0; n < traits.moments.size(); ++n) {
        if (!traits.keeps(n, hyperparameters)) continue;
        const auto place = static_cast<int>(n);
        const auto moment = plan_moment(traits.moments[n].kind, plan.moments, layout, weight_dtype);
        plan.at(codes_place(place)) = moment.codes;
        plan.at(scales_place(place)) = moment.scales;
    }
    return plan;
}

}  // namespace flashoptim
