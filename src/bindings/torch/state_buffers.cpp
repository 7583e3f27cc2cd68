// The buffers of a parameter's state: which there are, what they hold at first, where they lie.
#include "state_buffers.h"

#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

torch::TensorOptions options_of(const BufferPlan& plan, const torch::Device& device) {
    return torch::dtype(torch_dtype_of(plan.dtype)).device(device);
}

/// The memory of a state tensor, which somebody may have exchanged.
void* buffer(const torch::Tensor& tensor, const BufferPlan& plan, const std::string& parameter) {
    if (plan.count == 0) return nullptr;
    if (!tensor.defined() || tensor.numel() != plan.count ||
        tensor.scalar_type() != torch_dtype_of(plan.dtype)) {
        throw InvalidArgument(
            parameter +
            ": its state is not that of its options any more; use load_state_tensors to replace a state");
    }
    return tensor.data_ptr();
}

}  // namespace

torch::Tensor zeroed_elements(const BufferPlan& plan, at::IntArrayRef sizes, at::IntArrayRef strides,
                              const torch::Device& device) {
    if (plan.count == 0) return {};
    return torch::empty_strided(sizes, strides, options_of(plan, device)).zero_();
}

torch::Tensor zeroed_scales(const BufferPlan& plan, const StateForm& form, const torch::Device& device) {
    if (plan.count == 0) return {};
    const auto options = options_of(plan, device);
    if (form.plan.moments == MomentStorage::kNative)
        return torch::zeros({form.layout.rows, form.layout.groups_per_row()}, options);
    return torch::zeros({plan.count}, options);
}

bool fits(const StateForm& a, const StateForm& b, at::IntArrayRef sizes) {
    return a.plan == b.plan && a.device == b.device &&
           same_memory_order(sizes, a.layout.strides, b.layout.strides);
}

StateBuffers buffers(const FlashParamState& state, const StoragePlan& plan, const std::string& parameter) {
    return {buffer(state.error_bits(), plan.correction, parameter),
            buffer(state.first_moment(), plan.first, parameter),
            buffer(state.first_moment_scales(), plan.first_scales, parameter),
            buffer(state.second_moment(), plan.second, parameter),
            buffer(state.second_moment_scales(), plan.second_scales, parameter)};
}

StoragePlan plan_of(Rule rule, const FlashOptions& options, const torch::Tensor& tensor, const Layout& layout,
                    const std::string& name) {
    return plan_storage(rule, options.hyperparameters(), options.storage(),
                        dtype_of(tensor.scalar_type()).value(), layout, name);
}

std::unique_ptr<FlashParamState> new_state(Rule rule) {
    switch (rule) {
        case Rule::kSGD:
            return std::make_unique<SGDParamState>();
        case Rule::kSGDW:
            return std::make_unique<SGDWParamState>();
        case Rule::kAdam:
            return std::make_unique<AdamParamState>();
        case Rule::kAdamW:
            return std::make_unique<AdamWParamState>();
        case Rule::kLion:
            return std::make_unique<LionParamState>();
    }
    throw InvalidArgument("unknown rule");
}

void allocate_state(at::IntArrayRef sizes, const StateForm& form, const torch::Device& device,
                    FlashParamState& state) {
    const auto elements = [&](const BufferPlan& plan) {
        return zeroed_elements(plan, sizes, form.layout.strides, device);
    };
    state.error_bits(elements(form.plan.correction));
    state.first_moment(elements(form.plan.first));
    state.first_moment_scales(zeroed_scales(form.plan.first_scales, form, device));
    state.second_moment(elements(form.plan.second));
    state.second_moment_scales(zeroed_scales(form.plan.second_scales, form, device));
}

void move_state(FlashParamState& state, const torch::Device& device) {
    state.error_bits(on_device(state.error_bits(), device));
    state.first_moment(on_device(state.first_moment(), device));
    state.first_moment_scales(on_device(state.first_moment_scales(), device));
    state.second_moment(on_device(state.second_moment(), device));
    state.second_moment_scales(on_device(state.second_moment_scales(), device));
}

}  // namespace flashoptim::libtorch
