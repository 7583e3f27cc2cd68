// Step plans on torch's streams. FLASHOPTIM_OPERATORS_GPU says which kernels the build has: 0 none, 1 those
// for CUDA, 2 emulated ones.
#include "gpu.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

namespace flashoptim::operators {

namespace {

/// The lists of one caller. A step, a count and a norm have different lists, and a plan for each use avoids
/// repeated uploads.
enum class Use : std::uint8_t { kStep, kCount, kNorm };

#if FLASHOPTIM_OPERATORS_GPU != 0
/// Torch's current stream of a device.
void* current_stream(TensorDevice device) {
    if (device.is_host()) return nullptr;
    // Looked up by name: a torch without CUDA lacks this function. It has no tensors on a GPU either.
    using GetStream = AOTITorchError (*)(std::int32_t, void**);
    static const auto kGetStream =
        reinterpret_cast<GetStream>(::dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
    if (kGetStream == nullptr) refuse("torch has no CUDA streams: install a torch that is built with CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(kGetStream(device.index, &stream));
    return stream;
}

/// Torch's guard restores the former device only if CUDA is initialized there. Making that device current
/// without the guard would initialize it.
using DeviceGuard = std::optional<torch::stable::accelerator::DeviceGuard>;
void guard(DeviceGuard& guard, int device) {
    if (FLASHOPTIM_OPERATORS_GPU == 1) guard.emplace(device);
}

class Plans {
public:
    ~Plans() {
        for (auto& [mutex, plan] : plans_) {
            if (!plan) continue;
            DeviceGuard current;
            try {
                guard(current, plan->device());
            } catch (...) {
                current.reset();  // the plan frees its memory in any case
            }
            plan.reset();
        }
    }
    /// Calls body(plan, stream). Calls of several threads take turns.
    template <class Body>
    void with(Use use, TensorDevice device, Body body) {
        auto& [mutex, plan] = plans_[static_cast<std::size_t>(use)];
        const std::lock_guard lock(mutex);
        DeviceGuard current;
        guard(current, device.index);
        if (!plan || plan->device() != device.index) plan.emplace(device.index);
        body(*plan, current_stream(device));
    }

private:
    struct Guarded {
        std::mutex mutex;
        std::optional<cuda::StepPlan> plan;
    };
    std::array<Guarded, 3> plans_;
};
#else
class Plans {
public:
    template <class Body>
    void with(Use /*use*/, TensorDevice device, Body /*body*/) {
        refuse("nothing is stepped on " + device.text());
    }
};
#endif

/// All plans that callers keep.
class Registry {
public:
    std::int64_t add() {
        const std::lock_guard lock(mutex_);
        plans_.emplace(++last_, std::make_shared<Plans>());
        return last_;
    }
    void remove(std::int64_t number) {
        std::shared_ptr<Plans> removed;  // destroyed after the lock is released
        const std::lock_guard lock(mutex_);
        const auto found = plans_.find(number);
        if (found == plans_.end()) return;
        removed = std::move(found->second);
        plans_.erase(found);
    }
    std::shared_ptr<Plans> get(std::int64_t number) {
        if (number == 0) return std::make_shared<Plans>();
        const std::lock_guard lock(mutex_);
        const auto found = plans_.find(number);
        if (found == plans_.end()) {
            refuse("plan " + std::to_string(number) + " does not exist: make one with make_step_plan()");
        }
        return found->second;
    }

private:
    std::mutex mutex_;
    std::int64_t last_ = 0;
    std::map<std::int64_t, std::shared_ptr<Plans>> plans_;
};
/// Never destroyed. A plan that is destroyed at the end of the process would call a driver that may be
/// unloaded.
Registry& registry() {
    static Registry* const kPlans = std::make_unique<Registry>().release();
    return *kPlans;
}

}  // namespace

bool has_kernels_for(TensorDevice device) {
    if (FLASHOPTIM_OPERATORS_GPU == 2) return device.is_host();
    return FLASHOPTIM_OPERATORS_GPU == 1 && device.type == aoti_torch_device_type_cuda();
}
std::string why_not_stepped(TensorDevice device) {
    if (device.type != aoti_torch_device_type_cuda()) {
        return "nothing can be stepped: move it to the CPU or to a CUDA device";
    }
    return "this build of flashoptim_cpp has no kernels: move it to the CPU, or build the package where nvcc "
           "is";
}

std::int64_t gpu_kernels() { return FLASHOPTIM_OPERATORS_GPU; }
std::int64_t make_step_plan() { return registry().add(); }
void free_step_plan(std::int64_t number) { registry().remove(number); }

void gpu_step(std::int64_t plan, TensorDevice device, std::span<const StepItem> items,
              const cuda::StepOptions& options) {
    registry().get(plan)->with(Use::kStep, device,
                               [&](auto& on, void* stream) { on.step(items, options, stream); });
}
void gpu_count_bad(std::int64_t plan, TensorDevice device, std::span<const StepItem> items,
                   const cuda::DeviceValues& values) {
    registry().get(plan)->with(Use::kCount, device, [&](auto& on, void* stream) {
        on.count_bad_gradients(items, {NonFinite::kSkipElement, values}, stream);
    });
}
void gpu_grad_norm(std::int64_t plan, TensorDevice device, std::span<const StepItem> items,
                   const cuda::DeviceValues& values, double* norm) {
    registry().get(plan)->with(Use::kNorm, device, [&](auto& on, void* stream) {
        on.grad_norm(items, values, norm, 0.0, nullptr, stream);
    });
}

}  // namespace flashoptim::operators
