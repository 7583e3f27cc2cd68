// Devices through LibTorch, with none of its CUDA headers.
#include "trainer/torch_device.h"

#include <c10/core/CachingDeviceAllocator.h>

#include <optional>

#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

std::optional<torch::Device> parse(const std::string& name) {
    try {
        const torch::Device device(name);
        if (device.is_cpu() || device.is_cuda()) {
            return device;
        }
    } catch (const c10::Error&) {  // said below
    }
    return std::nullopt;
}

}  // namespace

torch::Device find_device(const std::string& name) {
    const auto device = parse(name);
    if (!device) {
        throw InvalidArgument("device '" + name + "' is not known; choose cpu, cuda or cuda:N");
    }
    if (device->is_cpu()) {
        return *device;
    }
    const auto count = static_cast<std::int64_t>(torch::cuda::device_count());
    if (count == 0) {
        throw InvalidArgument("device '" + name +
                              "' is not there: LibTorch sees no CUDA device; use a LibTorch that was built "
                              "with CUDA on a machine with a GPU and its driver, or the device cpu");
    }
    const torch::Device found(torch::kCUDA, device->has_index() ? device->index() : torch::DeviceIndex{0});
    if (found.index() >= count) {
        throw InvalidArgument("device '" + name + "' is not there: LibTorch sees " + std::to_string(count) +
                              "; count them from cuda:0");
    }
    return found;
}

void wait_for(const torch::Device& device) {
    if (device.is_cuda()) {
        torch::cuda::synchronize(device.index());
    }
}

std::int64_t peak_tensor_bytes(const torch::Device& device) {
    if (device.is_cpu()) {
        return 0;
    }
    constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    const auto statistics = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
    return statistics.allocated_bytes[kAll].peak;
}

}  // namespace flashoptim::trainer
