// The buffers of a parameter's state: which ones exist, their initial values, their memory.
#include "state_buffers.h"

#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

torch::TensorOptions options_of(const BufferPlan& plan, const torch::Device& device) {
    return torch::dtype(torch_dtype_of(plan.dtype)).device(device);
}

/// The memory of a state tensor. Checks it, because the caller's code may have replaced the tensor.
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

}  // namespace

bool fits(const StateForm& a, const StateForm& b, at::IntArrayRef sizes) {
    return a.plan == b.plan && a.device == b.device &&
           same_memory_order(sizes, a.layout.strides, b.layout.strides);
}

StateBuffers buffers(const FlashParamState& state, const StoragePlan& plan, const std::string& parameter) {
    StateBuffers all;
    for (int place = 0; place < kMaxBuffers; ++place) {
        all.at(place) = buffer(state.at(place), plan.at(place), parameter);
    }
    return all;
}

StoragePlan plan_of(Rule rule, const FlashOptions& options, const torch::Tensor& tensor, const Layout& layout,
                    const std::string& name) {
    return plan_storage(rule, options.hyperparameters(), options.storage(),
                        dtype_of(tensor.scalar_type()).value(), layout, name);
}

torch::Tensor zeroed_buffer(int place, at::IntArrayRef sizes, const StateForm& form,
                            const torch::Device& device) {
    const auto& plan = form.plan.at(place);
    return is_scales_place(place) ? zeroed_scales(plan, form, device)
                                  : zeroed_elements(plan, sizes, form.layout.strides, device);
}

void allocate_state(at::IntArrayRef sizes, const StateForm& form, const torch::Device& device,
                    FlashParamState& state) {
    for (int place = 0; place < kMaxBuffers; ++place) {
        state.at(place) = zeroed_buffer(place, sizes, form, device);
    }
}

void move_state(FlashParamState& state, const torch::Device& device) {
    for (int place = 0; place < kMaxBuffers; ++place) state.at(place) = on_device(state.at(place), device);
}

}  // namespace flashoptim::libtorch
