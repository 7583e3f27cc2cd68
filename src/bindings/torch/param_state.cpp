// Writes the state of a parameter to an archive and reads it. The optimizer checks whether it fits.
#include "flashoptim/libtorch.h"
#include "tensor_bridge.h"

namespace flashoptim::libtorch {

namespace {

c10::IValue read(torch::serialize::InputArchive& archive, const std::string& name) {
    c10::IValue value;
    if (!archive.try_read(name, value)) {
        throw FormatError("optimizer archive: " + name +
                          " of a parameter is missing; the archive is damaged or of another optimizer");
    }
    return value;
}

}  // namespace

const torch::Tensor& FlashParamState::named(std::string_view name) const {
    const auto place = buffer_place(rule_, name);
    if (!place) {
        throw InvalidArgument("the state of " + std::string(name_of(rule_)) + " has no " + std::string(name) +
                              ": give a name of its row in the table of rules");
    }
    return at(*place);
}

std::vector<std::pair<std::string, torch::Tensor>> FlashParamState::tensors() const {
    std::vector<std::pair<std::string, torch::Tensor>> all;
    for (int place = 0; place < kMaxBuffers; ++place) {
        if (at(place).defined()) all.emplace_back(buffer_name(rule_, place), at(place));
    }
    return all;
}

void FlashParamState::serialize(torch::serialize::OutputArchive& archive) const {
    archive.write("step", step());
    archive.write("bad_elements", bad_elements());
    archive.write("has_momentum", has_momentum());
    // Saved from the CPU: torch cannot read an archive with GPU tensors on a machine without a GPU.
    for (const auto& [name, tensor] : tensors())
        archive.write(name, on_device(tensor, torch::kCPU), /*is_buffer=*/true);
}

void FlashParamState::serialize(torch::serialize::InputArchive& archive) {
    step(read(archive, "step").toInt());
    bad_elements(read(archive, "bad_elements").toInt());
    has_momentum(read(archive, "has_momentum").toBool());
    for (int place = 0; place < kMaxBuffers; ++place) {
        torch::Tensor saved;
        const std::string name(buffer_name(rule_, place));
        if (!name.empty()) archive.try_read(name, saved, /*is_buffer=*/true);
        at(place) = saved;
    }
}

}  // namespace flashoptim::libtorch
