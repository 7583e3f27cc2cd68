// Registers the operators: their schemas, which Python and torch.compile see, and their functions.
#include <stdexcept>

#include "flashoptim/error.h"
#include "gpu.h"
#include "operators.h"

namespace flashoptim::operators {

namespace {

/// The function of an operator for torch's dispatcher. An InvalidArgument of the core becomes a ValueError in
/// Python.
template <auto* kKernel>
void boxed(StableIValue* stack, std::uint64_t arguments, std::uint64_t results) {
    try {
        TORCH_BOX(kKernel)(stack, arguments, results);
    } catch (const InvalidArgument& error) {
        refuse(error.what());
    }
}

}  // namespace

STABLE_TORCH_LIBRARY(flashoptim_cpp, library) {
    library.def(
        "layout(int[] shape, int[] strides, int[] whole_shape, int[] whole_strides, int[] offset) -> Tensor");
    library.def(
        "plan(Tensor layout, int rule, Tensor hyperparameters, int format, int master_weight_bits, "
        "bool quantize, int min_numel, int min_numel_1d, int weight_dtype) -> Tensor");
    library.def(
        "step_(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] state, int[] places, "
        "Tensor(c!)[] steps, Tensor(d!) bad_elements, Tensor table, Tensor hyperparameters, Tensor? "
        "grad_scale, "
        "Tensor? found_inf, float gradient_factor, int nonfinite, Tensor? clip_coefficient=None, "
        "Tensor? learning_rates=None, int plan=0) -> ()");
    library.def(
        "update_moments_(Tensor(a!)[] directions, Tensor[] weights, Tensor[] gradients, Tensor(b!)[] state, "
        "int[] places, Tensor(c!)[] steps, Tensor(d!) bad_elements, Tensor table, Tensor hyperparameters, "
        "Tensor? grad_scale, float gradient_factor) -> Tensor");
    library.def(
        "apply_update_(Tensor(a!)[] weights, Tensor(b!)[] corrections, Tensor[] directions, Tensor[] steps, "
        "Tensor(c!) bad_elements, Tensor table, Tensor hyperparameters, Tensor scalars) -> ()");
    library.def(
        "count_bad(Tensor[] weights, Tensor[] gradients, Tensor[] corrections, Tensor table, "
        "Tensor hyperparameters, Tensor? grad_scale, float gradient_factor, Tensor? clip_coefficient=None, "
        "int plan=0) -> Tensor");
    library.def(
        "grad_norm(Tensor[] weights, Tensor[] gradients, Tensor table, Tensor hyperparameters, "
        "float gradient_factor, int plan=0) -> Tensor");
    library.def("rule_table() -> str");
    library.def("check_hyperparameters(Tensor hyperparameters, int rule) -> ()");
    library.def(
        "encode_moment(Tensor values, Tensor layout, int moment, int storage, int weight_dtype=0) -> "
        "(Tensor, "
        "Tensor)");
    library.def(
        "decode_moment(Tensor codes, Tensor scales, Tensor layout, int moment, int storage, "
        "int weight_dtype=0) -> Tensor");
    library.def("check_moment(Tensor codes, Tensor scales, Tensor layout, Tensor plan, int moment) -> ()");
    library.def(
        "split_weights(Tensor masters, int weight_dtype, int master_weight_bits, bool paper) -> (Tensor, "
        "Tensor)");
    library.def(
        "join_weights(Tensor weights, Tensor corrections, int master_weight_bits, bool paper) -> Tensor");
    library.def(
        "correction_of(Tensor masters, Tensor weights, int master_weight_bits, bool paper) -> Tensor");
    library.def("set_threads(int threads) -> ()");
    library.def("backend() -> int");
    library.def("set_backend(int backend) -> ()");
    library.def("gpu_kernels() -> int");
    library.def("make_step_plan() -> int");
    library.def("free_step_plan(int plan) -> ()");
}

// Registered for every device and for calls without tensors. The functions themselves check the devices of
// their tensors and refuse a wrong one by name.
STABLE_TORCH_LIBRARY_IMPL(flashoptim_cpp, CompositeExplicitAutograd, library) {
    library.impl("layout", &boxed<&layout>);
    library.impl("plan", &boxed<&plan>);
    library.impl("step_", &boxed<&step>);
    library.impl("update_moments_", &boxed<&update_moments>);
    library.impl("apply_update_", &boxed<&apply_update>);
    library.impl("count_bad", &boxed<&count_bad>);
    library.impl("grad_norm", &boxed<&grad_norm>);
    library.impl("rule_table", &boxed<&rule_table>);
    library.impl("check_hyperparameters", &boxed<&check_groups>);
    library.impl("encode_moment", &boxed<&encode_moment>);
    library.impl("decode_moment", &boxed<&decode_moment>);
    library.impl("check_moment", &boxed<&check_moment>);
    library.impl("split_weights", &boxed<&split_weights>);
    library.impl("join_weights", &boxed<&join_weights>);
    library.impl("correction_of", &boxed<&correction_of>);
    library.impl("set_threads", &boxed<&set_threads>);
    library.impl("backend", &boxed<&backend>);
    library.impl("set_backend", &boxed<&set_backend>);
    library.impl("gpu_kernels", &boxed<&gpu_kernels>);
    library.impl("make_step_plan", &boxed<&make_step_plan>);
    library.impl("free_step_plan", &boxed<&free_step_plan>);
}

}  // namespace flashoptim::operators
