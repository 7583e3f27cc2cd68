// The face of the CUDA backend: keeps a list's descriptors on the device and enqueues what a step consists of.
#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda/launchers.h"
#include "cuda/memory.h"
#include "cuda/tensor_list.h"
#include "cuda/whole_step.h"
#include "flashoptim/cuda.h"
#include "step/kernel_types.h"

namespace flashoptim::cuda {

namespace {

Launchers find_launchers(Rule rule, bool has_first, const StoragePlan& plan) {
    return visit_kernel_types(rule, has_first, plan, []<class R, class M, class W>() {
        return Launchers{&launch_step<R, M, W>, &launch_count<CountingRule<W>, W>};
    });
}

DeviceSources sources_of(const DeviceValues& values) {
    return {values.steps_done, values.learning_rate, values.grad_scale, values.clip_coefficient,
            values.found_inf};
}

bool is_captured(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
}

}  // namespace

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        (void)cudaGetLastError();  // no driver, or none for this runtime
        return 0;
    }
    return count;
}

struct StepPlan::Impl {
    explicit Impl(int wanted) : device(wanted) {
        const int count = device_count();
        if (device < 0 || device >= count) {
            throw Error("CUDA device " + std::to_string(device) + " does not exist: this process sees " +
                        std::to_string(count) +
                        "; choose another, or see to the driver and CUDA_VISIBLE_DEVICES");
        }
    }
    ~Impl() {
        // Memory is given back on the device that it lies on, after what still runs there.
        int former = -1;
        if (cudaGetDevice(&former) == cudaSuccess) (void)cudaSetDevice(device);
        on_device.reset();
        if (former >= 0) (void)cudaSetDevice(former);
    }
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;

    struct OnDevice {
        Memory<true> tensors, chunks, kinds, control, bad_elements, sums;
        Uploader uploader;
    };

    void prepare(std::span<const StepItem> items, cudaStream_t stream) {
        list.set(items, &find_launchers);
        must_upload_tensors = must_upload_tensors || list.tensors_changed();
        must_upload_chunks = must_upload_chunks || list.chunks_changed();
        auto& memory = *on_device;
        const auto tensor_bytes = list.tensors().size() * sizeof(TensorEntry);
        const auto chunk_bytes = list.chunks().size() * sizeof(Chunk);
        const auto kind_bytes = list.kinds().size() * sizeof(Kind);
        const auto bad_bytes = std::max<std::size_t>(items.size(), 1) * sizeof(std::uint64_t);
        const bool must_grow = !memory.kinds.holds(kind_bytes) || !memory.bad_elements.holds(bad_bytes) ||
                               !memory.control.holds(1);
        if (!must_upload_tensors && !must_upload_chunks && !must_grow) return;
        if (is_captured(stream)) {
            throw Error(
                "the list of tensors is not the one last prepared, and its stream is being captured: call "
                "StepPlan::prepare with it before the capture begins");
        }
        memory.kinds.reserve(kind_bytes);
        memory.bad_elements.reserve(bad_bytes);
        memory.control.reserve(sizeof(Control));
        if (must_upload_tensors) {
            memory.tensors.reserve(tensor_bytes);
            memory.uploader.upload(memory.tensors.as<void>(), list.tensors().data(), tensor_bytes, stream);
            must_upload_tensors = false;
        }
        if (must_upload_chunks) {
            memory.chunks.reserve(chunk_bytes);
            memory.uploader.upload(memory.chunks.as<void>(), list.chunks().data(), chunk_bytes, stream);
            must_upload_chunks = false;
        }
    }

    /// Scalars, factors and verdicts; counters at zero.
    void compute_scalars(const DeviceSources& from, cudaStream_t stream) {
        auto& memory = *on_device;
        counted = list.tensors().size();
        if (counted != 0) {
            check_cuda(
                cudaMemsetAsync(memory.bad_elements.as<void>(), 0, counted * sizeof(std::uint64_t), stream),
                "cudaMemsetAsync");
        }
        Preparation p;
        p.control = memory.control.as<Control>();
        p.from = from;
        const auto& kinds = list.kinds();
        for (std::size_t begin = 0; begin == 0 || begin < kinds.size(); begin += kKindsInLaunch) {
            p.count = static_cast<std::uint32_t>(std::min<std::size_t>(kKindsInLaunch, kinds.size() - begin));
            std::copy_n(kinds.begin() + static_cast<std::ptrdiff_t>(begin), p.count, p.kinds);
            p.to = memory.kinds.as<Kind>() + begin;
            launch_preparation(p, stream);
            check_cuda(cudaGetLastError(), "the launch of a step's scalars");
        }
    }

    void launch(Launcher Launchers::* kernel, bool stops_at_bad_gradients, cudaStream_t stream) {
        auto& memory = *on_device;
        for (const auto& range : list.ranges()) {
            const Launch launch{memory.chunks.as<Chunk>() + range.begin,
                                memory.tensors.as<TensorEntry>(),
                                memory.kinds.as<Kind>(),
                                memory.control.as<Control>(),
                                memory.bad_elements.as<std::uint64_t>(),
                                range.count,
                                stops_at_bad_gradients};
            (range.launchers.*kernel)(launch, stream);
            check_cuda(cudaGetLastError(), "the launch of a step's kernel");
        }
    }

    [[nodiscard]] Control control_after(cudaStream_t stream) const {
        Control control;
        if (!on_device->control.holds(sizeof control)) return control;
        check_cuda(cudaMemcpyAsync(&control, on_device->control.as<void>(), sizeof control,
                                   cudaMemcpyDeviceToHost, stream),
                   "cudaMemcpyAsync");
        check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
        return control;
    }

    void read_bad_elements(std::span<std::uint64_t> counts, cudaStream_t stream) const {
        std::fill(counts.begin(), counts.end(), 0);
        const auto count = std::min(counts.size(), counted);
        if (count != 0) {
            check_cuda(cudaMemcpyAsync(counts.data(), on_device->bad_elements.as<void>(),
                                       count * sizeof(std::uint64_t), cudaMemcpyDeviceToHost, stream),
                       "cudaMemcpyAsync");
        }
        check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    }

    int device;
    TensorList list;
    bool must_upload_tensors = true, must_upload_chunks = true;
    std::size_t counted = 0;  // tensors of the last step
    NonFinite nonfinite = NonFinite::kSkipElement;
    std::unique_ptr<OnDevice> on_device = std::make_unique<OnDevice>();
};

StepPlan::StepPlan(int device) : impl_(std::make_unique<Impl>(device)) {}
StepPlan::~StepPlan() = default;
StepPlan::StepPlan(StepPlan&&) noexcept = default;
StepPlan& StepPlan::operator=(StepPlan&&) noexcept = default;

int StepPlan::device() const { return impl_->device; }

void StepPlan::prepare(std::span<const StepItem> items, void* stream) {
    const CurrentDevice current(impl_->device);
    impl_->prepare(items, static_cast<cudaStream_t>(stream));
}

void StepPlan::step(std::span<const StepItem> items, const StepOptions& options, void* stream) {
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    impl_->prepare(items, on);
    impl_->nonfinite = options.nonfinite;
    const bool stops = options.nonfinite != NonFinite::kSkipElement;
    impl_->compute_scalars(sources_of(options.device), on);
    if (stops) impl_->launch(&Launchers::count_bad, stops, on);
    impl_->launch(&Launchers::step, stops, on);
    if (options.device.steps_done != nullptr) {
        launch_advance(options.device.steps_done, impl_->on_device->control.as<Control>(), stops, on);
        check_cuda(cudaGetLastError(), "the launch that advances the step count");
    }
}

std::uint64_t StepPlan::count_bad_gradients(std::span<const StepItem> items, const StepOptions& options,
                                            std::span<std::uint64_t> counts, void* stream) {
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    impl_->prepare(items, on);
    auto from = sources_of(options.device);
    from.found_inf = nullptr;
    impl_->compute_scalars(from, on);
    impl_->launch(&Launchers::count_bad, false, on);
    impl_->read_bad_elements(counts, on);
    return impl_->control_after(on).bad_gradients;
}

void StepPlan::grad_norm(std::span<const StepItem> items, const DeviceValues& values, double* norm,
                         double max_norm, float* clip_coefficient, void* stream) {
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    impl_->prepare(items, on);
    auto& memory = *impl_->on_device;
    const auto bytes =
        static_cast<std::size_t>(std::max<std::int64_t>(impl_->list.norm_blocks(), 1)) * sizeof(double);
    if (!memory.sums.holds(bytes) && is_captured(on)) {
        throw Error(
            "memory for the gradient norm must grow while its stream is being captured: call "
            "StepPlan::grad_norm once before the capture begins");
    }
    memory.sums.reserve(bytes);
    DeviceSources from;
    from.grad_scale = values.grad_scale;
    impl_->compute_scalars(from, on);
    const NormLaunch launch{memory.tensors.as<TensorEntry>(), static_cast<std::int64_t>(items.size()),
                            impl_->list.norm_blocks(), memory.control.as<Control>(),
                            memory.sums.as<double>()};
    launch_norm(launch, norm, max_norm, clip_coefficient, on);
    check_cuda(cudaGetLastError(), "the launch of the gradient norm");
}

void StepPlan::bad_elements(std::span<std::uint64_t> counts, void* stream) const {
    const CurrentDevice current(impl_->device);
    impl_->read_bad_elements(counts, static_cast<cudaStream_t>(stream));
}

const std::uint64_t* StepPlan::bad_elements() const {
    return impl_->on_device->bad_elements.as<std::uint64_t>();
}

bool StepPlan::was_skipped(void* stream) const {
    const CurrentDevice current(impl_->device);
    const auto control = impl_->control_after(static_cast<cudaStream_t>(stream));
    return control.is_skipped != 0 || control.bad_gradients != 0;
}

void StepPlan::check(void* stream) const {
    if (impl_->nonfinite != NonFinite::kError) return;
    const CurrentDevice current(impl_->device);
    const auto bad = impl_->control_after(static_cast<cudaStream_t>(stream)).bad_gradients;
    if (bad == 0) return;
    throw NonFiniteError(std::to_string(bad) +
                         " elements of the gradients are NaN, infinite or at least 2^48: nothing was "
                         "stepped; lower the loss scale or choose NonFinite::kSkipElement");
}

}  // namespace flashoptim::cuda
