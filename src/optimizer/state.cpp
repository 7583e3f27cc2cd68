// Reads and writes the state of each parameter: master weights, moments, stored buffers.
#include <algorithm>
#include <cstring>
#include <string>

#include "impl.h"

namespace flashoptim {

namespace {

constexpr const char* kWeightName = "weight";

std::span<const std::uint16_t> scales_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const std::uint16_t*>(bytes.data()), bytes.size() / sizeof(std::uint16_t)};
}

}  // namespace

HostBytes Optimizer::Impl::on_host(void* data, std::size_t bytes) const {
    if (!options.device) return {{static_cast<std::byte*>(data), bytes}, nullptr};
    std::shared_ptr<std::byte[]> copy = std::make_unique<std::byte[]>(bytes);
    options.device->copy_to_host(copy.get(), data, bytes);
    const std::span<std::byte> all(copy.get(), bytes);
    return {all, std::move(copy)};
}
HostBytes Optimizer::Impl::on_host(const StateMemory& memory) const {
    return on_host(memory.data(), memory.bytes());
}
HostBytes Optimizer::Impl::weight_on_host(const Parameter& p) const {
    return on_host(p.weight.data, static_cast<std::size_t>(p.layout.numel) * size_of(p.weight.dtype));
}
void Optimizer::Impl::write(void* to, std::span<const std::byte> bytes) const {
    if (bytes.empty()) return;
    if (options.device) {
        options.device->copy_from_host(to, bytes.data(), bytes.size());
    } else {
        std::memcpy(to, bytes.data(), bytes.size());
    }
}

std::vector<float> Optimizer::master(ParameterId parameter) const {
    std::vector<float> values(static_cast<std::size_t>(impl_->at(parameter).layout.numel));
    copy_master(parameter, values);
    return values;
}
void Optimizer::copy_master(ParameterId parameter, std::span<float> to) const {
    const auto& p = impl_->at(parameter);
    if (to.size() != static_cast<std::size_t>(p.layout.numel)) {
        throw InvalidArgument(p.name + " has " + std::to_string(p.layout.numel) + " elements, not " +
                              std::to_string(to.size()));
    }
    const auto weight = impl_->weight_on_host(p), correction = impl_->on_host(p.stored.correction());
    join_weights(p.stored.plan, weight.bytes.data(), correction.bytes.data(), to);
}
void Optimizer::set_master(ParameterId parameter, std::span<const float> values) {
    auto& p = impl_->at(parameter);
    if (values.size() != static_cast<std::size_t>(p.layout.numel)) {
        throw InvalidArgument(p.name + " has " + std::to_string(p.layout.numel) + " elements, not " +
                              std::to_string(values.size()));
    }
    if (!impl_->options.device)
        return split_weights(p.stored.plan, values, p.weight.data, p.stored.correction().data());
    std::vector<std::byte> weight(values.size() * size_of(p.weight.dtype)),
        correction(p.stored.correction().bytes());
    split_weights(p.stored.plan, values, weight.data(), correction.data());
    impl_->write(p.weight.data, weight);
    impl_->write(p.stored.correction().data(), correction);
}
void Optimizer::refresh_masters(ParameterId parameter) {
    const auto& correction = impl_->at(parameter).stored.correction();
    if (correction.bytes() == 0) return;
    if (impl_->options.device) return impl_->options.device->clear(correction.data(), correction.bytes());
    std::memset(correction.data(), 0, correction.bytes());
}
void Optimizer::refresh_masters() {
    for (ParameterId p = 0; p < impl_->parameters.size(); ++p) refresh_masters(p);
}

std::vector<float> Optimizer::moment(ParameterId parameter, int number) const {
    const auto& p = impl_->at(parameter);
    const auto moments = traits_of(impl_->rule).moments;
    if (number < 0 || static_cast<std::size_t>(number) >= moments.size()) return {};
    const auto& codes = p.stored.at(codes_place(number));
    if (codes.plan().count == 0) return {};
    std::vector<float> values(static_cast<std::size_t>(p.layout.numel));
    const auto codes_here = impl_->on_host(codes),
               scales_here = impl_->on_host(p.stored.at(scales_place(number)));
    dequantize_moment(moments[static_cast<std::size_t>(number)].kind, p.stored.plan.moments, p.layout,
                      codes_here.bytes, scales_of(scales_here.bytes), values, p.stored.plan.weight_dtype);
    return values;
}

std::vector<StateTensor> Optimizer::state(ParameterId parameter) {
    const auto& p = impl_->at(parameter);
    std::vector<StateTensor> tensors;
    for (int place = 0; place < kMaxBuffers; ++place) {
        const auto& buffer = p.stored.at(place);
        if (buffer.plan().count == 0) continue;
        const auto shape =
            is_scales_place(place) ? std::vector<std::int64_t>{buffer.plan().count} : p.weight.shape;
        auto here = impl_->on_host(buffer);
        tensors.push_back({std::string(buffer_name(impl_->rule, place)), buffer.plan().dtype, shape,
                           here.bytes, std::move(here.copy)});
    }
    return tensors;
}
StateTensor Optimizer::stored_weight(ParameterId parameter) {
    const auto& p = impl_->at(parameter);
    auto here = impl_->weight_on_host(p);
    return {kWeightName, p.weight.dtype, p.weight.shape, here.bytes, std::move(here.copy)};
}
void* Optimizer::Impl::place_of(const Parameter& p, const StoredState& stored, std::string_view name,
                                std::size_t bytes) const {
    void* place = p.weight.data;
    std::size_t size = static_cast<std::size_t>(p.layout.numel) * size_of(p.weight.dtype);
    if (name != kWeightName) {
        const auto buffer = buffer_place(rule, name);
        if (!buffer) {
            throw InvalidArgument(p.name + " has no buffer that is called " + std::string(name) +
                                  ": give a name that state() or stored_weight() gave");
        }
        place = stored.at(*buffer).data();
        size = stored.at(*buffer).bytes();
    }
    if (bytes == size) return place;
    throw InvalidArgument(p.name + " has " + std::to_string(size) + " bytes of " + std::string(name) +
                          ", not " + std::to_string(bytes) +
                          ": give what state() or stored_weight() of the same storage gave");
}
void Optimizer::set_stored(ParameterId parameter, std::string_view name, std::span<const std::byte> bytes) {
    const auto& p = impl_->at(parameter);
    impl_->write(impl_->place_of(p, p.stored, name, bytes.size()), bytes);
}
MemoryReport Optimizer::memory_report() const {
    MemoryReport report;
    for (const auto& p : impl_->parameters) {
        const auto numel = static_cast<std::size_t>(p.layout.numel);
        report.parameters += p.layout.numel;
        report.weights += numel * size_of(p.weight.dtype);
        report.corrections += p.stored.correction().bytes();
        for (int place = kCorrectionPlace + 1; place < kMaxBuffers; ++place) {
            (is_scales_place(place) ? report.scales : report.moments) += p.stored.at(place).bytes();
        }
        if (p.has_gradient) report.gradients += numel * size_of(p.gradient.dtype) + p.ordered_gradient.size();
    }
    return report;
}

}  // namespace flashoptim
