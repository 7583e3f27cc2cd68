#include "step/item_checks.h"

#include <string>

#include "step/memory_checks.h"

namespace flashoptim {

namespace {

[[noreturn]] void refuse(std::size_t index, const std::string& why) {
    throw InvalidArgument("tensor " + std::to_string(index) + why);
}

void check_buffer(const void* data, const BufferPlan& plan, const char* what, std::size_t index) {
    if (plan.count == 0) return;
    if (data == nullptr) {
        refuse(index,
               std::string(": its ") + what + " is null: give memory for every buffer that its plan has");
    }
    if (!is_aligned(data, plan.dtype)) {
        check_alignment(data, plan.dtype, "the " + std::string(what) + " of tensor " + std::to_string(index));
    }
}

bool has_elements(const StepItem& item, std::size_t index) {
    if (item.layout == nullptr) refuse(index, " has no layout: give that of layout_of");
    return item.layout->numel != 0;
}

void check_gradient(const StepItem& item, std::size_t index) {
    if (!is_floating(item.gradient_dtype)) {
        refuse(index, ": its gradient is " + std::string(name_of(item.gradient_dtype)) +
                          ": gradients must be float32, bfloat16 or float16");
    }
    check_buffer(item.gradient, {item.gradient_dtype, item.layout->numel}, "gradient", index);
}

}  // namespace

void check_items(std::span<const StepItem> items) {
    for (std::size_t n = 0; n < items.size(); ++n) {
        const auto& item = items[n];
        if (!has_elements(item, n)) continue;
        if (item.step < 1) {
            refuse(n, " has the step count " + std::to_string(item.step) + ": it is 1 in the first step");
        }
        if (!is_floating(item.plan.weight_dtype)) {
            refuse(n, ": its weight is " + std::string(name_of(item.plan.weight_dtype)) +
                          ": weights must be float32, bfloat16 or float16");
        }
        check_gradient(item, n);
        check_buffer(item.weight, {item.plan.weight_dtype, item.layout->numel}, "weight", n);
        check_buffer(item.state.correction, item.plan.correction, "correction", n);
        check_buffer(item.state.first, item.plan.first, "first moment", n);
        check_buffer(item.state.first_scales, item.plan.first_scales, "first moment's scales", n);
        check_buffer(item.state.second, item.plan.second, "second moment", n);
        check_buffer(item.state.second_scales, item.plan.second_scales, "second moment's scales", n);
    }
}

void check_gradients(std::span<const StepItem> items) {
    for (std::size_t n = 0; n < items.size(); ++n) {
        if (has_elements(items[n], n)) check_gradient(items[n], n);
    }
}

}  // namespace flashoptim
