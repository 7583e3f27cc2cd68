// Writing what an optimizer keeps of a parameter into an archive, and reading it. Whether it fits is judged by the optimizer.
#include "flashoptim/libtorch.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

/// The tensors of a state under their names in files.
template <class State, class Function>
void for_each_tensor(State& state, const Function& function) {
    const auto first = state.first_moment_name();
    function("error_bits", state.error_bits());
    function(first, state.first_moment());
    function(first + "_scales", state.first_moment_scales());
    function("exp_avg_sq", state.second_moment());
    function("exp_avg_sq_scales", state.second_moment_scales());
}

c10::IValue read(torch::serialize::InputArchive& archive, const std::string& name) {
    c10::IValue value;
    if (!archive.try_read(name, value)) {
        throw FormatError("optimizer archive: " + name +
                          " of a parameter is missing; the archive is damaged or of another optimizer");
    }
    return value;
}

}  // namespace

std::vector<std::pair<std::string, torch::Tensor>> FlashParamState::tensors() const {
    std::vector<std::pair<std::string, torch::Tensor>> named;
    for_each_tensor(*this, [&](const std::string& name, const torch::Tensor& tensor) {
        if (tensor.defined()) named.emplace_back(name, tensor);
    });
    return named;
}

void FlashParamState::serialize(torch::serialize::OutputArchive& archive) const {
    archive.write("step", step());
    archive.write("bad_elements", bad_elements());
    archive.write("has_momentum", has_momentum());
    // On the CPU: torch could not read an archive of a GPU's tensors on a machine without one.
    for (const auto& [name, tensor] : tensors())
        archive.write(name, on_device(tensor, torch::kCPU), /*is_buffer=*/true);
}

void FlashParamState::serialize(torch::serialize::InputArchive& archive) {
    step(read(archive, "step").toInt());
    bad_elements(read(archive, "bad_elements").toInt());
    has_momentum(read(archive, "has_momentum").toBool());
    for_each_tensor(*this, [&](const std::string& name, torch::Tensor& tensor) {
        torch::Tensor saved;
        archive.try_read(name, saved, /*is_buffer=*/true);
        tensor = saved;
    });
}

}  // namespace flashoptim::libtorch
