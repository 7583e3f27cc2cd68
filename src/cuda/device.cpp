// The CUDA device of the framework-free optimizers: memory, copies and steps on one stream.
#include <algorithm>
#include <iterator>
#include <vector>

#include "cuda/runtime.h"
#include "flashoptim/cuda_device.h"

namespace flashoptim::cuda {

/// A device and the stream on which all its work is enqueued.
struct DeviceQueue {
    int device;
    void* stream;

    [[nodiscard]] cudaStream_t on() const { return static_cast<cudaStream_t>(stream); }

    /// Throws while the stream is captured. A replay of the graph would repeat values that the host passed or
    /// read once.
    void refuse_capture() const {
        const CurrentDevice current(device);
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
        check_cuda(cudaStreamIsCapturing(on(), &status), "cudaStreamIsCapturing");
        if (status == cudaStreamCaptureStatusNone) return;
        throw InvalidArgument(
            "an optimizer cannot be captured in a CUDA graph: its replays would repeat one step count and "
            "learning rate; step outside of the capture, or use flashoptim::cuda::StepPlan with steps_done");
    }
    void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
        if (bytes == 0) return;
        refuse_capture();
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
        refuse_capture();
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
    explicit Stepper(std::shared_ptr<const DeviceQueue> queue) : queue_(std::move(queue)) {}

    void step(std::span<const StepItem> items, std::size_t list, const DeviceNumbers& numbers) override {
        queue_->refuse_capture();
        if (list >= counters_.size()) counters_.resize(list + 1);
        auto& counters = counters_[list];
        const auto needed = items.size() * sizeof(std::uint64_t);
        if (needed > counters.bytes) counters = {queue_->allocate(needed), needed};  // a new list
        StepOptions options;
        options.device = values_of(items, numbers);
        options.device.bad_elements = reinterpret_cast<std::uint64_t*>(counters.memory.get());
        plan_of(items).step(items, options, queue_->stream);
    }
    void collect(std::size_t list, std::span<std::uint64_t> counts) override {
        if (list >= counters_.size()) return;  // the first step of this list failed
        const auto& counters = counters_[list];
        const auto bytes = std::min(counts.size_bytes(), counters.bytes);
        std::vector<std::uint64_t> counted(bytes / sizeof(std::uint64_t));
        queue_->copy(counted.data(), counters.memory.get(), bytes, cudaMemcpyDeviceToHost);
        queue_->clear(counters.memory.get(), bytes);
        for (std::size_t n = 0; n < counted.size(); ++n) counts[n] += counted[n];
    }
    std::uint64_t count_bad_gradients(std::span<StepItem> items, const DeviceNumbers& numbers) override {
        queue_->refuse_capture();
        StepOptions options;
        options.device = values_of(items, numbers);
        std::vector<std::uint64_t> counts(items.size());
        const auto sum = plan_of(items).count_bad_gradients(items, options, counts, queue_->stream);
        for (std::size_t n = 0; n < items.size(); ++n) items[n].bad_elements = counts[n];
        return sum;
    }
    void grad_norm(std::span<const StepItem> items, const DeviceNumbers& numbers,
                   const DeviceNorm& to) override {
        queue_->refuse_capture();
        plan_of(items).grad_norm(items, values_of(items, numbers), to.norm, to.max_norm, to.clip_coefficient,
                                 queue_->stream);
    }

private:
    struct Counters {
        std::shared_ptr<std::byte> memory;
        std::size_t bytes = 0;
    };

    /// A list that is on the device, and the key by which it is found again.
    struct KnownList {
        const void* first;
        const void* last;
        std::size_t count;
        StepPlan plan;
    };

    /// The plan that stepped these items last, else the least recently used plan. With two plans, two
    /// networks that alternate both keep their descriptors on the device. More plans would take more device
    /// memory.
    StepPlan& plan_of(std::span<const StepItem> items) {
        constexpr std::size_t kPlans = 2;
        const void* const first = items.empty() ? nullptr : items.front().weight;
        const void* const last = items.empty() ? nullptr : items.back().weight;
        auto known = std::find_if(known_.begin(), known_.end(), [&](const KnownList& list) {
            return list.first == first && list.last == last && list.count == items.size();
        });
        if (known == known_.end()) {
            if (known_.size() < kPlans)
                known_.push_back({first, last, items.size(), StepPlan(queue_->device)});
            known = std::prev(known_.end());
            known->first = first;
            known->last = last;
            known->count = items.size();
        }
        std::rotate(known_.begin(), known, std::next(known));
        return known_.front().plan;
    }

    /// The values for a plan. The spans in them are valid until the next call.
    DeviceValues values_of(std::span<const StepItem> items, const DeviceNumbers& numbers) {
        item_values_.assign(numbers.steps_done.size(), {});
        for (std::size_t n = 0; n < item_values_.size(); ++n) {
            if (numbers.steps_done[n] == nullptr) continue;
            item_values_[n].steps_done = numbers.steps_done[n];
            item_values_[n].unfilled_at = items[n].step - 1;
        }
        DeviceValues values;
        values.grad_scale = numbers.grad_scale;
        values.clip_coefficient = numbers.clip_coefficient;
        values.found_inf = numbers.found_inf;
        values.items = item_values_;
        return values;
    }

    std::shared_ptr<const DeviceQueue> queue_;
    std::vector<KnownList> known_;    // the most recently used first
    std::vector<Counters> counters_;  // one for each list
    std::vector<ItemValues> item_values_;
};

}  // namespace

CudaDevice::CudaDevice(int device, void* stream) : queue_(std::make_shared<DeviceQueue>(device, stream)) {
    check_device(device);
}
CudaDevice::~CudaDevice() = default;

int CudaDevice::index() const { return queue_->device; }
void* CudaDevice::stream() const { return queue_->stream; }
void CudaDevice::set_stream(void* stream) { queue_->stream = stream; }

std::shared_ptr<std::byte> CudaDevice::allocate(std::size_t bytes) { return queue_->allocate(bytes); }
void CudaDevice::copy_to_host(void* to, const void* from, std::size_t bytes) {
    queue_->copy(to, from, bytes, cudaMemcpyDeviceToHost);
}
void CudaDevice::copy_from_host(void* to, const void* from, std::size_t bytes) {
    queue_->copy(to, from, bytes, cudaMemcpyHostToDevice);
}
void CudaDevice::clear(void* data, std::size_t bytes) { queue_->clear(data, bytes); }
void CudaDevice::check_memory(const void* data, const std::string& name) {
    cuda::check_memory(queue_->device, data, name);
}
std::unique_ptr<DeviceStepper> CudaDevice::stepper() { return std::make_unique<Stepper>(queue_); }

}  // namespace flashoptim::cuda
