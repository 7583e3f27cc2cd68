// Makes the state of a parameter, and converts it if the parameter has got another dtype, memory order or
// device. Also joins and splits the full-precision weight.
#include <cstring>
#include <utility>

#include "flashoptim/quantize.h"
#include "optimizer_impl.h"
#include "state_buffers.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

/// The tensor on the CPU in this memory order: the tensor itself or a copy. Undefined stays undefined.
torch::Tensor here_in(const torch::Tensor& tensor, at::IntArrayRef strides) {
    if (!tensor.defined()) return {};
    return in_order(on_device(tensor.detach(), torch::kCPU), strides, tensor.scalar_type());
}

const void* memory_or_null(const torch::Tensor& tensor) {
    return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

/// The full-precision weights of a parameter that still has the dtype of its state, in the parameter's memory
/// order.
torch::Tensor joined(const StateForm& form, const torch::Tensor& weight, const torch::Tensor& correction,
                     at::IntArrayRef strides) {
    auto masters = torch::empty_strided(weight.sizes(), strides, torch::dtype(torch::kFloat32));
    join_weights(form.plan, weight.const_data_ptr(), memory_or_null(correction), memory_of<float>(masters));
    return masters;
}

/// The tensors of one moment. converted() returns them on the CPU, or unchanged on the state's device.
struct MomentTensors {
    torch::Tensor codes, scales;
};
MomentTensors converted(int n, MomentKind kind, const MomentTensors& from, const StateForm& former,
                        const StateForm& form, at::IntArrayRef sizes) {
    if (form.plan.codes(n).count == 0) return {};
    const bool was_there = from.codes.defined();
    if (was_there && former.plan.moments == form.plan.moments &&
        former.plan.codes(n).dtype == form.plan.codes(n).dtype &&
        same_memory_order(sizes, former.layout.strides, form.layout.strides))
        return from;
    MomentTensors to{zeroed_buffer(codes_place(n), sizes, form, torch::kCPU),
                     zeroed_buffer(scales_place(n), sizes, form, torch::kCPU)};
    if (!was_there) return to;
    const auto bits_of = [](const torch::Tensor& tensor) { return memory_of<std::uint16_t>(tensor); };
    const auto codes = on_device(from.codes, torch::kCPU),
               scales_of_codes = on_device(from.scales, torch::kCPU);
    const auto values = torch::empty_strided(sizes, former.layout.strides, torch::dtype(torch::kFloat32));
    dequantize_moment(kind, former.plan.moments, former.layout, memory_of<const std::byte>(codes),
                      bits_of(scales_of_codes), memory_of<float>(values), former.plan.weight_dtype);
    const auto ordered = in_order(values, form.layout.strides, torch::kFloat32);
    quantize_moment(kind, form.plan.moments, form.layout, memory_of<const float>(ordered),
                    memory_of<std::byte>(to.codes), bits_of(to.scales), form.plan.weight_dtype);
    return to;
}

}  // namespace

StateSlots::~StateSlots() {
    auto& states = owner_.state();
    for (auto* key : keys_) {
        const auto place = states.find(key);
        if (place != states.end() && place->second == nullptr) states.erase(place);
    }
}

void StateSlots::reserve(const Parameter& parameter) {
    keys_.push_back(parameter.key());
    owner_.state().emplace(parameter.key(), nullptr);  // an existing entry stays
}

FlashParamState* OptimizerImpl::state_of(const Parameter& parameter) const {
    const auto found = owner->state().find(parameter.key());
    return found == owner->state().end() ? nullptr : dynamic_cast<FlashParamState*>(found->second.get());
}

FreshState OptimizerImpl::fresh_state(const Parameter& parameter) {
    const auto& form = parameter.form;
    const auto* old = state_of(parameter);
    FreshState fresh;
    if (old == nullptr) {
        fresh.state = std::make_unique<FlashParamState>(rule);
        allocate_state(parameter.sizes, form, form.device, *fresh.state);
        return fresh;
    }
    if (!parameter.former) return fresh;
    const auto& former = *parameter.former;
    const auto& strides = form.layout.strides;
    if (parameter.counts_on_device) collect_steps();
    fresh.state = std::make_unique<FlashParamState>(rule);
    fresh.state->step(old->step()).bad_elements(old->bad_elements()).has_momentum(old->has_momentum());
    try {
        int n = 0;
        for (const auto& moment : traits_of(rule).moments) {
            auto tensors = converted(n, moment.kind, {old->at(codes_place(n)), old->at(scales_place(n))},
                                     former, form, parameter.sizes);
            fresh.state->at(codes_place(n)) = std::move(tensors.codes);
            fresh.state->at(scales_place(n)) = std::move(tensors.scales);
            ++n;
        }
    } catch (const InvalidArgument& error) {
        throw InvalidArgument(parameter.name + ": its state cannot be encoded in another memory order (" +
                              error.what() +
                              "); give the parameter the strides that its state was made under");
    }
    if (!old->at(codes_place(0)).defined() || !fresh.state->at(codes_place(0)).defined())
        fresh.state->has_momentum(false);

    if (former.plan.weight_dtype == form.plan.weight_dtype) {
        fresh.state->at(kCorrectionPlace) = here_in(old->at(kCorrectionPlace), strides);
    } else {
        fresh.state->at(kCorrectionPlace) =
            zeroed_buffer(kCorrectionPlace, parameter.sizes, form, torch::kCPU);
        if (old->at(kCorrectionPlace).defined()) {
            const auto masters = master(parameter);
            auto weight = torch::empty_strided(parameter.sizes, strides,
                                               torch::dtype(torch_dtype_of(form.plan.weight_dtype)));
            const auto& correction = fresh.state->at(kCorrectionPlace);
            split_weights(form.plan, memory_of<const float>(on_device(masters, torch::kCPU)),
                          weight.mutable_data_ptr(),
                          correction.defined() ? correction.mutable_data_ptr() : nullptr);
            fresh.weight = on_device(weight, form.device);
        }
    }
    move_state(*fresh.state, form.device);
    return fresh;
}

void OptimizerImpl::install(Parameter& parameter, std::unique_ptr<FlashParamState> state) noexcept {
    owner->state().find(parameter.key())->second = std::move(state);
    parameter.former.reset();
}

void OptimizerImpl::adopt(Parameter& parameter, FreshState fresh) {
    if (fresh.state == nullptr) return;
    StateSlots slots(*owner);
    slots.reserve(parameter);
    if (fresh.weight.defined()) write_weight(parameter, fresh.weight);
    install(parameter, std::move(fresh.state));
}

FlashParamState& OptimizerImpl::any_state(Parameter& parameter) {
    if (state_of(parameter) == nullptr) adopt(parameter, fresh_state(parameter));
    return *state_of(parameter);
}

void OptimizerImpl::write_weight(const Parameter& parameter, const torch::Tensor& weight) {
    if (parameter.tensor.is_cpu()) {
        std::memcpy(parameter.tensor.mutable_data_ptr(), weight.const_data_ptr(), weight.nbytes());
    } else {
        parameter.tensor.detach().copy_(weight);
    }
    if (!parameter.tensor.is_inference()) torch::autograd::impl::bump_version(parameter.tensor);
}

void OptimizerImpl::set_state(Parameter& parameter, std::unique_ptr<FlashParamState> state, StateForm form) {
    if (state == nullptr) {
        owner->state().erase(parameter.key());
        parameter.former.reset();
        return;
    }
    std::unique_ptr<StateForm> former;
    if (!fits(form, parameter.form, parameter.sizes)) former = std::make_unique<StateForm>(std::move(form));
    StateSlots slots(*owner);
    slots.reserve(parameter);
    install(parameter, std::move(state));
    parameter.former = std::move(former);
}

torch::Tensor OptimizerImpl::master(const Parameter& parameter) const {
    const auto& tensor = parameter.tensor;
    const auto& strides = parameter.form.layout.strides;
    const auto* state = state_of(parameter);
    const auto weight = here_in(tensor, strides);
    const auto plain = [&] {
        return torch::empty_strided(tensor.sizes(), strides, torch::dtype(torch::kFloat32)).copy_(weight);
    };
    if (state == nullptr || !state->at(kCorrectionPlace).defined())
        return on_device(plain(), tensor.device());
    const auto& form = parameter.state_form();
    const auto correction = here_in(state->at(kCorrectionPlace), strides);
    const auto dtype = torch_dtype_of(form.plan.weight_dtype);
    if (dtype == tensor.scalar_type()) {
        return on_device(joined(form, weight, correction, strides), tensor.device());
    }
    // The weight was cast. If the former dtype can represent an element, the element still belongs to its
    // correction. If not, the element was written later in full precision, and the correction is void.
    const auto former = in_order(weight.to(dtype), strides, dtype);
    const auto is_cast = former.to(tensor.scalar_type()).eq(weight);
    auto masters = plain();
    masters.copy_(torch::where(is_cast, joined(form, former, correction, strides), masters));
    return on_device(masters, tensor.device());
}

void OptimizerImpl::set_master(Parameter& parameter, const torch::Tensor& values) {
    const auto& tensor = parameter.tensor;
    const auto masters =
        in_order(on_device(values.detach(), torch::kCPU), parameter.form.layout.strides, torch::kFloat32);
    auto fresh = fresh_state(parameter);
    StateSlots slots(*owner);
    slots.reserve(parameter);
    const auto& state = fresh.state ? *fresh.state : *state_of(parameter);
    buffers(state, parameter.form.plan, parameter.name);  // checks the tensors
    // The tensors themselves if they are on the CPU, else copies.
    const auto weight = on_device(tensor.detach(), torch::kCPU);
    const auto correction = on_device(state.at(kCorrectionPlace), torch::kCPU);
    split_weights(parameter.form.plan, memory_of<const float>(masters), weight.mutable_data_ptr(),
                  correction.defined() ? correction.mutable_data_ptr() : nullptr);
    if (!tensor.is_cpu()) {
        tensor.detach().copy_(weight);
        if (correction.defined()) state.at(kCorrectionPlace).copy_(correction);
    }
    if (fresh.state) install(parameter, std::move(fresh.state));
    if (!tensor.is_inference()) torch::autograd::impl::bump_version(tensor);
}

void OptimizerImpl::clear_correction(const Parameter& parameter) const {
    const auto* state = state_of(parameter);
    if (state == nullptr || !state->at(kCorrectionPlace).defined()) return;
    const auto& bits = state->at(kCorrectionPlace);
    if (bits.is_cpu()) {
        std::memset(bits.mutable_data_ptr(), 0, bits.nbytes());
    } else {
        bits.zero_();
    }
}

}  // namespace flashoptim::libtorch
