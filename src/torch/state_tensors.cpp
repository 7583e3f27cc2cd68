// From tensors of a checkpoint to a state.
#include "state_tensors.h"

#include <set>
#include <utility>

#include "flashoptim/quantize.h"
#include "state_buffers.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

/// How a parameter lay in memory when its state was saved.
struct SavedOrder {
    std::vector<std::int64_t> strides;
    Layout layout;
    StoragePlan plan;
};

SavedOrder saved_order(Rule rule, const FlashOptions& options, const Parameter& parameter,
                       at::IntArrayRef saved_strides) {
    const auto& tensor = parameter.tensor;
    SavedOrder order{tensor.strides().vec(), parameter.layout,
                     plan_of(rule, options, tensor, parameter.layout, parameter.name)};
    if (saved_strides.empty() || saved_strides == tensor.strides()) return order;
    if (saved_strides.size() != tensor.strides().size()) {
        throw FormatError(parameter.name + ": its state was saved under strides " + describe(saved_strides) +
                          ", another number of dimensions; load the checkpoint of this model");
    }
    if (same_memory_order(tensor.sizes(), tensor.strides(), saved_strides)) return order;
    auto view = view_of(tensor);
    view.strides = saved_strides.vec();
    order.strides = view.strides;
    try {
        order.layout = layout_of(view, parameter.name + ", as it was saved,");
    } catch (const InvalidArgument& error) {
        throw FormatError(error.what());
    }
    order.plan = plan_of(rule, options, tensor, order.layout, parameter.name);
    return order;
}

/// Copies the tensor of one name into `to`, which has the dtype, shape and order that it must have.
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

/// Decodes a moment that lies in one order and encodes it in another.
void reorder_moment(Moment moment, const Parameter& parameter, const SavedOrder& order,
                    const torch::Tensor& codes, const torch::Tensor& scales, MomentStorage storage,
                    const torch::Tensor& to_codes, const torch::Tensor& to_scales) {
    if (!codes.defined()) return;
    const auto fp32 = torch::dtype(torch::kFloat32);
    const auto sizes = parameter.tensor.sizes();
    const auto values = torch::empty_strided(sizes, order.strides, fp32);
    dequantize_moment(moment, order.plan.moments, order.layout, memory_of<const std::byte>(codes),
                      scales_of(scales), memory_of<float>(values));
    const auto here = in_order(values, parameter.tensor.strides(), torch::kFloat32);
    quantize_moment(moment, storage, parameter.layout, memory_of<const float>(here),
                    memory_of<std::byte>(to_codes), memory_of<std::uint16_t>(to_scales));
}

}  // namespace

std::unique_ptr<FlashParamState> restore_state(Rule rule, const FlashOptions& options,
                                               const Parameter& parameter,
                                               const std::map<std::string, torch::Tensor>& tensors,
                                               at::IntArrayRef saved_strides,
                                               const FlashParamState& scalars) {
    const auto order = saved_order(rule, options, parameter, saved_strides);
    auto state = new_state(rule);
    state->step(scalars.step()).bad_elements(scalars.bad_elements()).has_momentum(scalars.has_momentum());
    const auto first = state->first_moment_name();
    const std::set<std::string> known{"error_bits", first, first + "_scales", "exp_avg_sq",
                                      "exp_avg_sq_scales"};
    for (const auto& [name, tensor] : tensors) {
        if (!known.contains(name)) {
            throw FormatError(parameter.name + ": its state has no tensor " + name +
                              "; load the checkpoint of this optimizer");
        }
    }

    auto saved = new_state(rule);
    // On the CPU, which checks and converts.
    allocate_state(parameter, order.plan, order.layout, order.strides, torch::kCPU, *saved);
    take(tensors, "error_bits", parameter.name, saved->error_bits());
    take(tensors, first, parameter.name, saved->first_moment());
    take(tensors, first + "_scales", parameter.name, saved->first_moment_scales());
    take(tensors, "exp_avg_sq", parameter.name, saved->second_moment());
    take(tensors, "exp_avg_sq_scales", parameter.name, saved->second_moment_scales());
    if (saved->first_moment().defined()) {
        check_moment(Moment::kFirst, order.plan, memory_of<const std::byte>(saved->first_moment()),
                     scales_of(saved->first_moment_scales()), parameter.name + ": " + first);
    }
    if (saved->second_moment().defined()) {
        check_moment(Moment::kSecond, order.plan, memory_of<const std::byte>(saved->second_moment()),
                     scales_of(saved->second_moment_scales()), parameter.name + ": exp_avg_sq");
    }

    const auto& strides = parameter.tensor.strides();
    const bool same = same_memory_order(parameter.tensor.sizes(), strides, order.strides);
    if (same) {
        state->error_bits(saved->error_bits());
        state->first_moment(saved->first_moment()).first_moment_scales(saved->first_moment_scales());
        state->second_moment(saved->second_moment()).second_moment_scales(saved->second_moment_scales());
        move_state(*state, parameter.device);
        return state;
    }
    const auto plan = plan_of(rule, options, parameter.tensor, parameter.layout, parameter.name);
    allocate_state(parameter, plan, parameter.layout, strides, torch::kCPU, *state);
    if (saved->error_bits().defined()) state->error_bits().copy_(saved->error_bits());
    try {
        reorder_moment(Moment::kFirst, parameter, order, saved->first_moment(), saved->first_moment_scales(),
                       plan.moments, state->first_moment(), state->first_moment_scales());
        reorder_moment(Moment::kSecond, parameter, order, saved->second_moment(),
                       saved->second_moment_scales(), plan.moments, state->second_moment(),
                       state->second_moment_scales());
    } catch (const InvalidArgument& error) {
        throw FormatError(parameter.name + ": its state cannot be encoded in another memory order (" +
                          error.what() + "); load it into a parameter of the strides that it was saved with");
    }
    move_state(*state, parameter.device);
    return state;
}

}  // namespace flashoptim::libtorch
