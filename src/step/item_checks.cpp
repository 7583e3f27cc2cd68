#include "step/item_checks.h"

#include <string>

#include "core/memory_checks.h"

namespace flashoptim {

namespace {

[[noreturn]] void refuse(std::size_t index, const std::string& why) {
    throw InvalidArgument("tensor " + std::to_string(index) + why);
}

/// Whether a buffer can be used. A small tensor is stepped in less than 70 ns, so this check builds no
/// message; the slow path names what is wrong.
bool is_usable(const void* data, const BufferPlan& plan) {
    return plan.count == 0 || (data != nullptr && is_aligned(data, plan.dtype));
}
BufferPlan gradient_of(const StepItem& item) { return {item.gradient_dtype, item.layout->numel}; }
BufferPlan weight_of(const StepItem& item) { return {item.plan.weight_dtype, item.layout->numel}; }

BufferPlan direction_of(const StepItem& item) { return {item.direction_dtype, item.layout->numel}; }
bool is_direction(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kBFloat16; }

/// The parts of an item that a call reads or writes. The item's rule must be known.
struct UsedParts {
    bool weight, moments, gradient, direction;
    UsedParts(const StepItem& item, Call call)
        : weight(call != Call::kUpdateMoments || reads_weights(item)),
          moments(call != Call::kApplyUpdate),
          gradient(moments),
          direction(call == Call::kUpdateMoments || call == Call::kApplyUpdate) {}
    [[nodiscard]] bool has(int place) const { return place == kCorrectionPlace ? weight : moments; }
};

bool is_usable(const StepItem& item, Call call) {
    if (!is_known(item.rule)) return false;
    const auto& plan = item.plan;
    const UsedParts used(item, call);
    bool is_right = item.step >= 1 && is_floating(plan.weight_dtype);
    if (used.weight) is_right = is_right && is_usable(item.weight, weight_of(item));
    if (used.gradient) {
        is_right =
            is_right && is_floating(item.gradient_dtype) && is_usable(item.gradient, gradient_of(item));
    }
    if (used.direction) {
        is_right =
            is_right && is_direction(item.direction_dtype) && is_usable(item.direction, direction_of(item));
    }
    for (int place = 0; place < kMaxBuffers; ++place) {
        is_right = is_right && (!used.has(place) || is_usable(item.state.at(place), plan.at(place)));
    }
    return is_right;
}

/// The name of a state buffer in messages.
std::string described(Rule rule, int place) {
    if (place == kCorrectionPlace) return "correction";
    const auto name = buffer_name(rule, place);
    return name.empty() ? "state buffer " + std::to_string(place) : std::string(name);
}

void check_buffer(const void* data, const BufferPlan& plan, const std::string& what, std::size_t index) {
    if (is_usable(data, plan)) return;
    if (data == nullptr) {
        refuse(index, ": its " + what + " is null: give memory for every buffer that its plan has");
    }
    check_alignment(data, plan.dtype, "the " + what + " of tensor " + std::to_string(index));
}

bool has_elements(const StepItem& item, std::size_t index) {
    if (item.layout == nullptr) refuse(index, " has no layout: give that of layout_of");
    return item.layout->numel != 0;
}

void name_gradient(const StepItem& item, std::size_t index) {
    if (!is_floating(item.gradient_dtype)) {
        refuse(index, ": its gradient is " + std::string(name_of(item.gradient_dtype)) +
                          ": gradients must be float32, bfloat16 or float16");
    }
    check_buffer(item.gradient, gradient_of(item), "gradient", index);
}

void name_problem(const StepItem& item, std::size_t index, Call call) {
    if (!is_known(item.rule)) refuse_plan(index);
    const UsedParts used(item, call);
    if (item.step < 1) {
        refuse(index, " has the step count " + std::to_string(item.step) + ": it is 1 in the first step");
    }
    if (!is_floating(item.plan.weight_dtype)) {
        refuse(index, ": its weight is " + std::string(name_of(item.plan.weight_dtype)) +
                          ": weights must be float32, bfloat16 or float16");
    }
    if (used.gradient) name_gradient(item, index);
    if (used.weight) check_buffer(item.weight, weight_of(item), "weight", index);
    if (used.direction) {
        if (!is_direction(item.direction_dtype)) {
            refuse(index, ": its direction is " + std::string(name_of(item.direction_dtype)) +
                              ": directions must be float32 or bfloat16");
        }
        check_buffer(item.direction, direction_of(item), "direction", index);
    }
    for (int place = 0; place < kMaxBuffers; ++place) {
        if (!used.has(place)) continue;
        check_buffer(item.state.at(place), item.plan.at(place), described(item.rule, place), index);
    }
}

}  // namespace

void refuse_plan(std::size_t index) {
    refuse(index, " has a plan that is not of its rule: give that of plan_storage for this rule");
}

void refuse_two_passes(std::size_t index) {
    refuse(index,
           " has a plan in the paper's order of operations, which has no step in two passes: plan it in the "
           "native or fp32 format");
}

void check_item(const StepItem& item, std::size_t index, Call call) {
    if (has_elements(item, index) && !is_usable(item, call)) name_problem(item, index, call);
}

void check_gradient(const StepItem& item, std::size_t index) {
    if (!has_elements(item, index)) return;
    if (!is_floating(item.gradient_dtype) || !is_usable(item.gradient, gradient_of(item))) {
        name_gradient(item, index);
    }
}

}  // namespace flashoptim
