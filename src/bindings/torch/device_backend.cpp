// Torch's CUDA devices and streams, through c10. No CUDA header of torch is needed, so a build with torch for
// the CPU compiles the same code.
#include "device_backend.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <optional>
#include <string_view>
#include <type_traits>

#include "flashoptim/error.h"

#if defined(FLASHOPTIM_WITH_CUDA)
#include "flashoptim/cuda_device.h"
#endif

namespace flashoptim::libtorch {

bool is_on_device([[maybe_unused]] const c10::Device& device) {
#if defined(FLASHOPTIM_EMULATED_CUDA)  // in tests, the CPU stands for device 0
    return true;
#else
    return !device.is_cpu();
#endif
}

std::optional<std::string> obstacle_of(const c10::Device& device) {
    if (!is_on_device(device)) return std::nullopt;
#if defined(FLASHOPTIM_WITH_CUDA)
    if (device.is_cuda() || device.is_cpu()) return std::nullopt;
    return "all parameters must be on the CPU or on CUDA devices";
#else
    if (!device.is_cuda()) return "all parameters must be on the CPU";
    return "this build has no CUDA backend: configure it where nvcc of CUDA 12.4 or later is, with "
           "-DFLASHOPTIM_CUDA=ON, or move the model to the CPU";
#endif
}

#if defined(FLASHOPTIM_WITH_CUDA)
namespace {

void* current_stream(const c10::Device& device) {
    if (!device.is_cuda()) return nullptr;
    const c10::impl::VirtualGuardImpl guard(device.type());
    return guard.getStreamNativeHandle(guard.getStream(device));
}

/// Whether the error is a lack of memory before anything was enqueued. After a later error the call may have
/// been executed in part, so it must not be repeated.
bool found_no_memory(const cuda::CudaError& error) {
    const std::string_view what = error.what();
    return what.find("cudaMalloc failed with cudaErrorMemoryAllocation") != what.npos ||
           what.find("the load of a step's kernels failed with cudaErrorMemoryAllocation") != what.npos;
}

/// Returns what `call` returns. Torch caches freed memory, often the whole GPU. If CUDA has no memory left
/// for the backend, torch's cache is emptied and the call is repeated once.
template <class Call>
auto with_memory(const c10::Device& device, const Call& call) {
    try {
        return call();
    } catch (const cuda::CudaError& error) {
        if (!found_no_memory(error)) throw;
    }
    if (device.is_cuda()) c10::getDeviceAllocator(device.type())->emptyCache();
    return call();
}

/// Runs each call on the stream that is current at the time of the call.
class Stepper final : public DeviceStepper {
public:
    explicit Stepper(const c10::Device& device)
        : device_(device),
          backend_(device.has_index() && device.is_cuda() ? device.index() : 0),
          stepper_(with_memory(device, [this] {
              const auto current = guard();
              return backend_.stepper();
          })) {}
    ~Stepper() override {
        try {
            const auto current = guard();
            stepper_.reset();
        } catch (...) {
            stepper_.reset();  // its memory is freed even without the guard
        }
    }
    Stepper(const Stepper&) = delete;
    Stepper& operator=(const Stepper&) = delete;

    void step(std::span<const StepItem> items, std::size_t list, const DeviceNumbers& numbers) override {
        now([&](DeviceStepper& stepper) { stepper.step(items, list, numbers); });
    }
    void collect(std::size_t list, std::span<std::uint64_t> counts) override {
        now([&](DeviceStepper& stepper) { stepper.collect(list, counts); });
    }
    std::uint64_t count_bad_gradients(std::span<StepItem> items, const DeviceNumbers& numbers) override {
        return now([&](DeviceStepper& stepper) { return stepper.count_bad_gradients(items, numbers); });
    }
    void grad_norm(std::span<const StepItem> items, const DeviceNumbers& numbers,
                   const DeviceNorm& to) override {
        now([&](DeviceStepper& stepper) { stepper.grad_norm(items, numbers, to); });
    }

private:
    /// Torch's guard. It knows whether CUDA was initialised on the previous device. Without it, switching
    /// back would initialise CUDA there.
    [[nodiscard]] c10::OptionalDeviceGuard guard() const {
        return c10::OptionalDeviceGuard(device_.is_cuda() ? std::optional(device_) : std::nullopt);
    }
    template <class Call>
    std::invoke_result_t<Call, DeviceStepper&> now(const Call& call) {
        const auto current = guard();
        backend_.set_stream(current_stream(device_));
        return with_memory(device_, [&] { return call(*stepper_); });
    }
    c10::Device device_;
    cuda::CudaDevice backend_;
    std::unique_ptr<DeviceStepper> stepper_;
};

}  // namespace

std::unique_ptr<DeviceStepper> make_stepper(const c10::Device& device) {
    return std::make_unique<Stepper>(device);
}
#else
std::unique_ptr<DeviceStepper> make_stepper(const c10::Device& device) {
    throw InvalidArgument("parameters on " + device.str() + ": " + obstacle_of(device).value());
}
#endif

}  // namespace flashoptim::libtorch
