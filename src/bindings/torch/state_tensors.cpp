// Makes a state of the tensors of a checkpoint.
#include "state_tensors.h"

#include <utility>

#include "flashoptim/layout.h"
#include "flashoptim/quantize.h"
#include "state_buffers.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

/// Copies the tensor with this name to `to`, which has the required dtype, shape and memory order.
void take(const std::map<std::string, torch::Tensor>& tensors, const std::string& name,
          const std::string& parameter, torch::Tensor& to) {
    const auto found = tensors.find(name);
    const bool is_there = found != tensors.end() && found->second.defined();
    if (!to.defined()) {
        if (is_there) {
            throw FormatError(
                parameter + ": its state has no " + name +
                " under these options; load with the format and master_weight_bits of the checkpoint");
        }
        return;
    }
    const auto expected = describe(to);
    if (!is_there) {
        throw FormatError(
            parameter + ": " + name + " (" + expected +
            ") is missing in the state; load with the format and master_weight_bits of the checkpoint");
    }
    const auto& from = found->second;
    if (from.scalar_type() != to.scalar_type() || from.sizes() != to.sizes()) {
        throw FormatError(parameter + ": " + name + " is " + describe(from) + " and must be " + expected +
                          "; load the checkpoint of this model and these options");
    }
    to.copy_(from);
}

std::span<const std::uint16_t> scales_of(const torch::Tensor& scales) {
    return memory_of<const std::uint16_t>(scales);
}

}  // namespace

StateForm form_of_saved(const Parameter& parameter, at::IntArrayRef saved_strides, torch::Dtype saved_dtype,
                        Rule rule, const FlashOptions& options) {
    const auto& tensor = parameter.tensor;
    StateForm form;
    form.device = parameter.form.device;
    form.layout = parameter.form.layout;
    if (!saved_strides.empty() && saved_strides != tensor.strides()) {
        if (saved_strides.size() != tensor.strides().size()) {
            throw FormatError(parameter.name + ": its state was saved under strides " +
                              describe(saved_strides) +
                              ", another number of dimensions; load the checkpoint of this model");
        }
        auto view = view_of(tensor);
        view.strides = saved_strides.vec();
        try {
            form.layout = layout_of(view, parameter.name + ", as it was saved,");
        } catch (const InvalidArgument& error) {
            throw FormatError(error.what());
        }
    }
    form.plan = plan_storage(rule, options.hyperparameters(), options.storage(),
                             dtype_of(saved_dtype).value(), form.layout, parameter.name);
    return form;
}

std::unique_ptr<FlashParamState> restore_state(Rule rule, const Parameter& parameter, const StateForm& form,
                                               const std::map<std::string, torch::Tensor>& tensors) {
    auto state = std::make_unique<FlashParamState>(rule);
    for (const auto& [name, tensor] : tensors) {
        if (!buffer_place(rule, name)) {
            throw FormatError(parameter.name + ": its state has no tensor " + name +
                              "; load the checkpoint of this optimizer");
        }
    }
    // On the CPU, where the check runs.
    allocate_state(parameter.sizes, form, torch::kCPU, *state);
    for (int place = 0; place < kMaxBuffers; ++place) {
        take(tensors, std::string(buffer_name(rule, place)), parameter.name, state->at(place));
    }
    int n = 0;
    for (const auto& moment : traits_of(rule).moments) {
        const auto& codes = state->at(codes_place(n));
        if (codes.defined()) {
            check_moment(moment.kind, form.plan, form.layout, memory_of<const std::byte>(codes),
                         scales_of(state->at(scales_place(n))),
                         parameter.name + ": " + std::string(moment.name));
        }
        ++n;
    }
    move_state(*state, form.device);
    return state;
}

}  // namespace flashoptim::libtorch
