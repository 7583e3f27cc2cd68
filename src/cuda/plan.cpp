// The face of the CUDA backend: keeps a list's descriptors on the device and enqueues what a step consists of.
#include <algorithm>
#include <cstring>
#include <memory>
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

/// Puts the elements of a list at `to`; returns what is behind them.
template <class T>
std::byte* written(std::byte* to, const std::vector<T>& list) {
    const auto bytes = list.size() * sizeof(T);
    if (bytes != 0) std::memcpy(to, static_cast<const void*>(list.data()), bytes);
    return to + bytes;
}

bool is_captured(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
}

}  // namespace

struct StepPlan::Impl {
    explicit Impl(int wanted) : device(wanted) { check_device(device); }
    ~Impl() {
        if (!uses_device) return;
        const GivingBack now(device);
        on_device.reset();
        captured.clear();
        uploader.reset();
    }
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;

    /// What kernels read and write of a list. A graph that was captured with it reads it at every replay: then it stays as it is.
    struct OnDevice {
        Memory<true> descriptors, chunks, kinds, control, bad_elements, sums;
        bool is_captured = false;
    };
    /// Tensors, kinds and step counts, one behind the other, and how many bytes of everything the list needs.
    struct Sizes {
        std::size_t tensors, kinds, counts, chunks, scalars, bad_elements, sums;
        [[nodiscard]] std::size_t descriptors() const { return tensors + kinds + counts; }
    };

    [[nodiscard]] Sizes sizes(bool takes_norm = false) const {
        return {list.tensors().size() * sizeof(TensorEntry),
                list.kinds().size() * sizeof(KindSource),
                list.step_counts().size() * sizeof(std::int64_t*),
                list.chunks().size() * sizeof(Chunk),
                list.kinds().size() * sizeof(Kind),
                std::max<std::size_t>(list.tensors().size(), 1) * sizeof(std::uint64_t),
                static_cast<std::size_t>(takes_norm ? list.norm_blocks() : 0) * sizeof(double)};
    }
    [[nodiscard]] bool must_grow(const Sizes& size) const {
        const auto& memory = *on_device;
        return !memory.kinds.holds(size.scalars) || !memory.bad_elements.holds(size.bad_elements) ||
               !memory.control.holds(sizeof(Control)) || !memory.sums.holds(size.sums);
    }

    void prepare(std::span<const StepItem> items, const DeviceValues& values, cudaStream_t stream,
                 bool takes_norm = false) {
        list.set(items, values.items, &find_launchers);
        must_upload_tensors = must_upload_tensors || list.tensors_changed();
        must_upload_chunks = must_upload_chunks || list.chunks_changed();
        const auto size = sizes(takes_norm);
        const bool captures = is_captured(stream);
        if (must_upload_tensors || must_upload_chunks || must_grow(size)) {
            if (captures || on_device->is_captured) {
                captured.push_back(std::move(on_device));
                on_device = std::make_unique<OnDevice>();
                must_upload_tensors = must_upload_chunks = true;
            }
            if (captures) {
                const UncapturedStream beside;
                upload(size, beside.get());
                beside.wait();
            } else {
                upload(size, stream);
            }
        }
        on_device->is_captured = on_device->is_captured || captures;
    }

    void upload(const Sizes& size, cudaStream_t stream) {
        uses_device = true;
        auto& memory = *on_device;
        memory.kinds.reserve(size.scalars);
        memory.bad_elements.reserve(size.bad_elements);
        memory.control.reserve(sizeof(Control));
        memory.sums.reserve(size.sums);
        if (must_upload_tensors) {
            memory.descriptors.reserve(size.descriptors());
            uploader->upload(
                memory.descriptors.as<void>(), size.descriptors(),
                [&](std::byte* to) {
                    to = written(to, list.tensors());
                    to = written(to, list.kinds());
                    written(to, list.step_counts());
                },
                stream);
            must_upload_tensors = false;
        }
        if (must_upload_chunks) {
            memory.chunks.reserve(size.chunks);
            uploader->upload(
                memory.chunks.as<void>(), size.chunks, [&](std::byte* to) { written(to, list.chunks()); },
                stream);
            must_upload_chunks = false;
        }
    }

    /// Scalars, factors and verdicts; the plan's own counters at zero.
    void compute_scalars(const DeviceValues& values, cudaStream_t stream) {
        auto& memory = *on_device;
        counted = list.tensors().size();
        bad_elements = values.bad_elements;
        if (bad_elements == nullptr) {
            bad_elements = memory.bad_elements.as<std::uint64_t>();
            if (counted != 0) {
                check_cuda(cudaMemsetAsync(bad_elements, 0, counted * sizeof(std::uint64_t), stream),
                           "cudaMemsetAsync");
            }
        }
        Preparation p;
        p.kinds = descriptor<KindSource>(sizes().tensors);
        p.kind_count = static_cast<std::uint32_t>(list.kinds().size());
        p.to = memory.kinds.as<Kind>();
        p.control = memory.control.as<Control>();
        p.from = {values.steps_done, values.learning_rate, values.grad_scale, values.clip_coefficient,
                  values.found_inf};
        const auto& sources = list.sources();
        for (std::size_t begin = 0; begin == 0 || begin < sources.size(); begin += kSourcesInLaunch) {
            p.first_source = static_cast<std::uint32_t>(begin);
            p.source_count =
                static_cast<std::uint32_t>(std::min<std::size_t>(kSourcesInLaunch, sources.size() - begin));
            std::copy_n(sources.begin() + static_cast<std::ptrdiff_t>(begin), p.source_count, p.sources);
            check_cuda(launch_preparation(p, stream), "the launch of a step's scalars");
        }
    }

    /// Advances the step counts in device memory.
    void advance_counts(std::int64_t* steps_done, bool stops_at_bad_gradients, cudaStream_t stream) {
        const auto& counts = list.step_counts();
        // A count that is the list's and an item's is advanced once.
        if (std::binary_search(counts.begin(), counts.end(), steps_done)) steps_done = nullptr;
        if (counts.empty() && steps_done == nullptr) return;
        const auto size = sizes();
        const Advance launch{descriptor<std::int64_t*>(size.tensors + size.kinds),
                             static_cast<std::uint32_t>(counts.size()), stops_at_bad_gradients, steps_done,
                             on_device->control.as<Control>()};
        check_cuda(launch_advance(launch, stream), "the launch that advances step counts");
    }

    void launch(Launcher Launchers::* kernel, bool stops_at_bad_gradients, cudaStream_t stream) {
        auto& memory = *on_device;
        for (const auto& range : list.ranges()) {
            const Launch launch{memory.chunks.as<Chunk>() + range.begin,
                                descriptor<TensorEntry>(0),
                                memory.kinds.as<Kind>(),
                                memory.control.as<Control>(),
                                bad_elements,
                                range.count,
                                stops_at_bad_gradients};
            check_cuda((range.launchers.*kernel)(launch, stream), "the launch of a step's kernel");
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
            check_cuda(cudaMemcpyAsync(counts.data(), bad_elements, count * sizeof(std::uint64_t),
                                       cudaMemcpyDeviceToHost, stream),
                       "cudaMemcpyAsync");
        }
        check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    }

    template <class T>
    [[nodiscard]] const T* descriptor(std::size_t offset) const {
        return reinterpret_cast<const T*>(on_device->descriptors.as<std::byte>() + offset);
    }

    int device;
    bool uses_device = false;  // has allocated there
    TensorList list;
    bool must_upload_tensors = true, must_upload_chunks = true;
    std::size_t counted = 0;                // tensors of the last step
    std::uint64_t* bad_elements = nullptr;  // of each of them
    NonFinite nonfinite = NonFinite::kSkipElement;
    std::unique_ptr<Uploader> uploader = std::make_unique<Uploader>();
    std::unique_ptr<OnDevice> on_device = std::make_unique<OnDevice>();
    std::vector<std::unique_ptr<OnDevice>> captured;  // what graphs read
};

StepPlan::StepPlan(int device) : impl_(std::make_unique<Impl>(device)) {}
StepPlan::~StepPlan() = default;
StepPlan::StepPlan(StepPlan&&) noexcept = default;
StepPlan& StepPlan::operator=(StepPlan&&) noexcept = default;

int StepPlan::device() const { return impl_->device; }

void StepPlan::prepare(std::span<const StepItem> items, void* stream, const DeviceValues& values) {
    const CurrentDevice current(impl_->device);
    impl_->prepare(items, values, static_cast<cudaStream_t>(stream));
}

void StepPlan::step(std::span<const StepItem> items, const StepOptions& options, void* stream) {
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    impl_->prepare(items, options.device, on);
    impl_->nonfinite = options.nonfinite;
    const bool stops = options.nonfinite != NonFinite::kSkipElement;
    impl_->compute_scalars(options.device, on);
    if (stops) impl_->launch(&Launchers::count_bad, stops, on);
    impl_->launch(&Launchers::step, stops, on);
    impl_->advance_counts(options.device.steps_done, stops, on);
}

void StepPlan::count_bad_gradients(std::span<const StepItem> items, const StepOptions& options,
                                   void* stream) {
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    impl_->prepare(items, options.device, on);
    auto values = options.device;
    values.found_inf = nullptr;
    impl_->compute_scalars(values, on);
    impl_->launch(&Launchers::count_bad, false, on);
}

std::uint64_t StepPlan::count_bad_gradients(std::span<const StepItem> items, const StepOptions& options,
                                            std::span<std::uint64_t> counts, void* stream) {
    count_bad_gradients(items, options, stream);
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    impl_->read_bad_elements(counts, on);
    return impl_->control_after(on).bad_gradients;
}

void StepPlan::grad_norm(std::span<const StepItem> items, const DeviceValues& values, double* norm,
                         double max_norm, float* clip_coefficient, void* stream) {
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    impl_->prepare(items, values, on, true);
    DeviceValues from;
    from.grad_scale = values.grad_scale;
    from.bad_elements = values.bad_elements;
    impl_->compute_scalars(from, on);
    const auto& memory = *impl_->on_device;
    const NormLaunch launch{impl_->descriptor<TensorEntry>(0), static_cast<std::int64_t>(items.size()),
                            impl_->list.norm_blocks(), memory.control.as<Control>(),
                            memory.sums.as<double>()};
    check_cuda(launch_norm(launch, norm, max_norm, clip_coefficient, on), "the launch of the gradient norm");
}

void StepPlan::bad_elements(std::span<std::uint64_t> counts, void* stream) const {
    const CurrentDevice current(impl_->device);
    impl_->read_bad_elements(counts, static_cast<cudaStream_t>(stream));
}

const std::uint64_t* StepPlan::bad_elements() const { return impl_->bad_elements; }

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
