// Converts state to another format or stride order: through fp32 if values change, else by moving bytes.
#include "state_conversion.h"

#include <cmath>
#include <cstring>
#include <span>

#include "flashoptim/error.h"
#include "flashoptim/quantize.h"

namespace flashoptim::checkpoint {
namespace {

std::span<std::uint16_t> as_scales(std::vector<std::byte>& bytes) {
    return {reinterpret_cast<std::uint16_t*>(bytes.data()), bytes.size() / sizeof(std::uint16_t)};
}
std::span<const std::uint16_t> as_scales(const std::vector<std::byte>& bytes) {
    return {reinterpret_cast<const std::uint16_t*>(bytes.data()), bytes.size() / sizeof(std::uint16_t)};
}

/// Copies elements from one stride order to another.
class Reorder {
public:
    Reorder(const std::vector<std::int64_t>& shape, const Layout& from, const Layout& to)
        : shape_(shape), from_(from.strides), to_(to.strides), same_(same_memory_order(shape, from_, to_)) {}

    [[nodiscard]] bool is_identity() const { return same_; }
    template <class T>
    void apply(std::vector<T>& elements, DType dtype) const {
        if (same_ || elements.empty()) return;
        std::vector<T> ordered(elements.size());
        copy_in_order({elements.data(), dtype, shape_, from_}, to_, ordered.data());
        elements = std::move(ordered);
    }

private:
    const std::vector<std::int64_t>&shape_, &from_, &to_;
    bool same_;
};

bool same_correction(const StoragePlan& a, const StoragePlan& b) {
    return a.correction() == b.correction() &&
           (a.correction().count == 0 || a.paper_arithmetic == b.paper_arithmetic);
}

void convert_correction(StateBytes& state, const StoragePlan& from, const StoragePlan& to,
                        const void* weight_in_memory, std::size_t numel) {
    if (same_correction(from, to)) return;
    std::vector<float> masters(numel);
    const void* weight = state.weight.empty() ? weight_in_memory : state.weight.data();
    auto& correction = state.at(kCorrectionPlace);
    join_weights(from, weight, correction.data(), masters);
    state.weight.resize(numel * size_of(to.weight_dtype));
    correction.resize(to.correction().bytes());
    split_weights(to, masters, state.weight.data(), correction.data());
}

/// Throws for NaN and infinity, which only moments in the paper's format may be.
void check_finite(const std::vector<std::byte>& moment) {
    for (std::size_t at = 0; at + sizeof(float) <= moment.size(); at += sizeof(float)) {
        float value = 0.0F;
        std::memcpy(&value, moment.data() + at, sizeof value);
        if (!std::isfinite(value)) {
            throw InvalidArgument("value " + std::to_string(at / sizeof value) + " of the moment is " +
                                  std::to_string(value));
        }
    }
}

void convert_moment(const MomentTraits& moment, std::vector<std::byte>& codes, std::vector<std::byte>& scales,
                    const StateLayout& from, const StateLayout& to, const Reorder& reorder) {
    if (codes.empty()) return;
    const auto plan_of = [&](const StateLayout& state) {
        return plan_moment(moment.kind, state.plan.moments, state.layout, state.plan.weight_dtype);
    };
    const auto former = plan_of(from), wanted = plan_of(to);
    const bool is_finite_fp32 = to.plan.moments == MomentStorage::kFloat32 && !to.plan.paper_arithmetic;
    if (from.plan.moments == to.plan.moments && former.codes.dtype == wanted.codes.dtype &&
        (reorder.is_identity() || wanted.scales.count == 0)) {
        reorder.apply(codes, wanted.codes.dtype);
        if (is_finite_fp32) check_finite(codes);
        return;
    }
    std::vector<float> values(static_cast<std::size_t>(from.layout.numel));
    dequantize_moment(moment.kind, from.plan.moments, from.layout, codes, as_scales(scales), values,
                      from.plan.weight_dtype);
    reorder.apply(values, DType::kFloat32);
    codes.resize(wanted.codes.bytes());
    scales.resize(wanted.scales.bytes());
    quantize_moment(moment.kind, to.plan.moments, to.layout, values, codes, as_scales(scales),
                    to.plan.weight_dtype);
    if (is_finite_fp32) check_finite(codes);
}

}  // namespace

void check_state(Rule rule, const StateLayout& layout, const StateBytes& state, const std::string& label) {
    int n = 0;
    for (const auto& moment : traits_of(rule).moments) {
        check_moment(moment.kind, layout.plan, layout.layout, state.at(codes_place(n)),
                     as_scales(state.at(scales_place(n))), label + ", " + std::string(moment.name));
        ++n;
    }
}

StateBytes convert_state(Rule rule, StateBytes state, const StateLayout& from, const StateLayout& to,
                         const std::vector<std::int64_t>& shape, const void* weight_in_memory,
                         const std::string& label) {
    const Reorder reorder(shape, from.layout, to.layout);
    reorder.apply(state.weight, from.plan.weight_dtype);
    reorder.apply(state.at(kCorrectionPlace), from.plan.correction().dtype);
    convert_correction(state, from.plan, to.plan, weight_in_memory,
                       static_cast<std::size_t>(to.layout.numel));
    try {
        int n = 0;
        for (const auto& moment : traits_of(rule).moments) {
            convert_moment(moment, state.at(codes_place(n)), state.at(scales_place(n)), from, to, reorder);
            ++n;
        }
    } catch (const InvalidArgument& error) {
        throw FormatError(label + " cannot be kept in the format of this optimizer (" + error.what() +
                          "): load it into one with the format that it was saved in");
    }
    return state;
}

}  // namespace flashoptim::checkpoint
