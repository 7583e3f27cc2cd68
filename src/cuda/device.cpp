// The CUDA device of the framework-free optimizers: memory, copies and steps on one stream.
#include <algorithm>
#include <vector>

#include "cuda/runtime.h"
#include "flashoptim/cuda_device.h"

namespace flashoptim::cuda {

/// A device and the stream on which everything of it is enqueued.
struct DeviceQueue {
    int device;
    void* stream;

    [[nodiscard]] cudaStream_t on() const { return static_cast<cudaStream_t>(stream); }

    void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
        if (bytes == 0) return;
        const CurrentDevice current(device);
        check_cuda(cudaMemcpyAsync(to, from, bytes, kind, on()), "cudaMemcpyAsync");
        check_cuda(cudaStreamSynchronize(on()), "cudaStreamSynchronize");
    }
    void clear(void* data, std::size_t bytes) const {
        if (bytes == 0) return;
        const CurrentDevice current(device);
        check_cuda(cudaMemsetAsync(data, 0, bytes, on()), "cudaMemsetAsync");
    }
    [[nodiscard]] std::shared_ptr<std::byte> allocate(std::size_t bytes) const {
        if (bytes == 0) return nullptr;
        const CurrentDevice current(device);
        void* data = nullptr;
        check_cuda(cudaMalloc(&data, bytes), "cudaMalloc");
        const std::shared_ptr<std::byte> memory(static_cast<std::byte*>(data), [on = device](std::byte* p) {
            const GivingBack now(on);
            ignore_failure(cudaFree(p));
        });
        clear(data, bytes);
        return memory;
    }
};

namespace {

class Stepper final : public DeviceStepper {
public:
    explicit Stepper(std::shared_ptr<const DeviceQueue> queue)
        : queue_(std::move(queue)), plan_(queue_->device), norm_(queue_->allocate(sizeof(double))) {}

    void step(std::span<const StepItem> items) override {
        const auto needed = items.size() * sizeof(std::uint64_t);
        if (needed > count_bytes_) {  // another list, so all counts have been collected
            counts_ = queue_->allocate(needed);
            count_bytes_ = needed;
        }
        StepOptions options;
        options.device.bad_elements = reinterpret_cast<std::uint64_t*>(counts_.get());
        plan_.step(items, options, queue_->stream);
    }
    void collect(std::span<std::uint64_t> counts) override {
        const auto bytes = std::min(counts.size_bytes(), count_bytes_);
        std::vector<std::uint64_t> counted(bytes / sizeof(std::uint64_t));
        queue_->copy(counted.data(), counts_.get(), bytes, cudaMemcpyDeviceToHost);
        queue_->clear(counts_.get(), bytes);
        for (std::size_t n = 0; n < counted.size(); ++n) counts[n] += counted[n];
    }
    std::uint64_t count_bad_gradients(std::span<StepItem> items) override {
        std::vector<std::uint64_t> counts(items.size());
        const auto sum = plan_.count_bad_gradients(items, {}, counts, queue_->stream);
        for (std::size_t n = 0; n < items.size(); ++n) items[n].bad_elements = counts[n];
        return sum;
    }
    double grad_norm(std::span<const StepItem> items) override {
        plan_.grad_norm(items, {}, reinterpret_cast<double*>(norm_.get()), 1.0, nullptr, queue_->stream);
        double norm = 0.0;
        queue_->copy(&norm, norm_.get(), sizeof norm, cudaMemcpyDeviceToHost);
        return norm;
    }

private:
    std::shared_ptr<const DeviceQueue> queue_;
    StepPlan plan_;
    std::shared_ptr<std::byte> norm_, counts_;
    std::size_t count_bytes_ = 0;
};

}  // namespace

Device::Device(int device, void* stream) : queue_(std::make_shared<DeviceQueue>(device, stream)) {
    check_device(device);
}
Device::~Device() = default;

int Device::index() const { return queue_->device; }
void* Device::stream() const { return queue_->stream; }
void Device::set_stream(void* stream) { queue_->stream = stream; }

std::shared_ptr<std::byte> Device::allocate(std::size_t bytes) { return queue_->allocate(bytes); }
void Device::copy_to_host(void* to, const void* from, std::size_t bytes) {
    queue_->copy(to, from, bytes, cudaMemcpyDeviceToHost);
}
void Device::copy_from_host(void* to, const void* from, std::size_t bytes) {
    queue_->copy(to, from, bytes, cudaMemcpyHostToDevice);
}
void Device::clear(void* data, std::size_t bytes) { queue_->clear(data, bytes); }
void Device::check_memory(const void* data, const std::string& name) {
    cuda::check_memory(queue_->device, data, name);
}
std::unique_ptr<DeviceStepper> Device::stepper() { return std::make_unique<Stepper>(queue_); }

}  // namespace flashoptim::cuda
