// StepPlan, the public API of the CUDA backend. It keeps a list's descriptors on the device and enqueues the
// kernels of a step.
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

Launchers find_launchers(Rule rule, const StoragePlan& plan) {
    return visit_kernel_types(rule, plan, []<class R, class M, class W>() { return kLaunchers<R, M, W>; });
}

/// Copies the elements of a list to `to`. Returns the address after them.
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
        controls.release();
        kept_stepped.release();
        kept_counted.release();
        on_device.reset();
        idle.reset();
        captured.clear();
        uploader.reset();
    }
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;

    /// What a list is prepared for. grad_norm() and count_bad_gradients() must not overwrite the results of
    /// the last step, so each use has its own memory.
    enum class Use : std::uint8_t { kStep, kCount, kNorm, kAll };

    /// The device memory of a list. A graph that was captured with it reads it at every replay, so it must
    /// not change then.
    struct OnDevice {
        CudaMemory<true> descriptors, chunks, kinds, bad_elements, bad_gradients, sums;
        bool is_captured = false;
    };
    /// The bytes that the list needs of each kind of memory. Tensors, kinds and step counts lie one after the
    /// other.
    struct Sizes {
        std::size_t tensors, kinds, counts, chunks, scalars, bad_elements, bad_gradients, sums;
        [[nodiscard]] std::size_t descriptors() const { return tensors + kinds + counts; }
    };
    /// One count for each tensor, in device memory.
    struct Counts {
        std::uint64_t* at = nullptr;
        std::size_t size = 0;
    };

    [[nodiscard]] Sizes sizes(Use use) const {
        const auto counts = std::max<std::size_t>(list.tensors().size(), 1) * sizeof(std::uint64_t);
        const auto norm_blocks = static_cast<std::size_t>(list.norm_blocks());
        return {list.tensors().size() * sizeof(DeviceTensor),
                list.kinds().size() * sizeof(KindSource),
                list.step_counts().size() * sizeof(std::int64_t*),
                list.chunks().size() * sizeof(Chunk),
                list.kinds().size() * sizeof(Kind),
                use == Use::kStep || use == Use::kAll ? counts : 0,
                use == Use::kCount || use == Use::kAll ? counts : 0,
                use == Use::kNorm || use == Use::kAll ? norm_blocks * sizeof(double) : 0};
    }
    [[nodiscard]] bool must_grow(const Sizes& size) const {
        const auto& memory = *on_device;
        return must_clear_controls || !memory.kinds.holds(size.scalars) ||
               !memory.bad_elements.holds(size.bad_elements) ||
               !memory.bad_gradients.holds(size.bad_gradients) || !memory.sums.holds(size.sums);
    }

    void prepare(std::span<const StepItem> items, const DeviceValues& values, cudaStream_t stream, Use use) {
        list.set(items, values.items, &find_launchers);
        must_upload_tensors = must_upload_tensors || list.tensors_changed();
        must_upload_chunks = must_upload_chunks || list.chunks_changed();
        load_kernels();
        const auto size = sizes(use);
        const bool captures = is_captured(stream);
        if (must_upload_tensors || must_upload_chunks || must_grow(size)) {
            if (captures || on_device->is_captured) set_aside(captures);
            if (captures) {
                const UncapturedStream beside;
                upload(sizes(Use::kAll),
                       beside.get());  // kAll: a norm and a step of one graph share the memory
                beside.wait();
            } else {
                upload(size, stream);
            }
        }
        on_device->is_captured = on_device->is_captured || captures;
    }

    /// Loads the kernels that no earlier list needed. If they were loaded at their launch, memory could run
    /// out after a part of a step has been enqueued.
    void load_kernels() {
        const auto load = [this](Loader loader) {
            if (std::find(loaded.begin(), loaded.end(), loader) != loaded.end()) return;
            const RelaxedCapture relaxed;
            check_cuda(loader(), "the load of a step's kernels");
            loaded.push_back(loader);
        };
        load(&load_whole_step);
        for (const auto& range : list.ranges()) {
            load(range.launchers.load_step);
            load(range.launchers.load_count);
        }
    }

    /// Replaces on_device, so that memory that a graph reads or is about to read does not change. Memory that
    /// no graph reads is kept in `idle` for the next list outside of captures. The order of the stream puts
    /// that use after the last one.
    void set_aside(bool captures) {
        std::unique_ptr<OnDevice> next;
        if (captures || !idle) next = std::make_unique<OnDevice>();
        if (on_device->is_captured) captured.reserve(captured.size() + 1);
        // Nothing is thrown from here on.
        if (!next) next = std::move(idle);
        next->is_captured = captures;
        if (on_device->is_captured) {
            captured.push_back(std::move(on_device));
        } else {
            idle = std::move(on_device);
        }
        on_device = std::move(next);
        must_upload_tensors = must_upload_chunks = true;
    }

    void release_captured() {
        if (!uses_device) return;
        const GivingBack now(device);
        const auto forget_counts_of = [&](const OnDevice& memory) {
            if (stepped.at == memory.bad_elements.as<std::uint64_t>()) stepped = {};
            if (counted.at == memory.bad_gradients.as<std::uint64_t>()) counted = {};
        };
        for (const auto& memory : captured) forget_counts_of(*memory);
        captured.clear();
        if (idle) {
            forget_counts_of(*idle);
            idle.reset();
        }
        on_device->is_captured = false;
    }

    /// Memory that a list needs and the plan lacks. All of it is allocated before any of it replaces the
    /// plan's memory, so that a failed allocation changes nothing.
    struct Growth {
        CudaMemory<true> controls;
        OnDevice list;
    };
    static void grow(CudaMemory<true>& next, const CudaMemory<true>& present, std::size_t bytes) {
        if (!present.holds(bytes)) next = CudaMemory<true>::of(bytes);
    }
    static void take_over(CudaMemory<true>& present, CudaMemory<true>& next) noexcept {
        if (!next.holds(1)) return;
        present = std::move(next);
    }
    /// As above, but memory that holds the counts of the last step (or count) is kept until the next one
    /// begins.
    static void take_over(CudaMemory<true>& present, CudaMemory<true>& next, const Counts& last,
                          CudaMemory<true>& kept) noexcept {
        if (!next.holds(1)) return;
        if (last.at != nullptr && last.at == present.as<std::uint64_t>()) kept = std::move(present);
        present = std::move(next);
    }

    void allocate(const Sizes& size) {
        auto& memory = *on_device;
        Growth next;
        grow(next.controls, controls, 2 * sizeof(Control));
        grow(next.list.kinds, memory.kinds, size.scalars);
        grow(next.list.bad_elements, memory.bad_elements, size.bad_elements);
        grow(next.list.bad_gradients, memory.bad_gradients, size.bad_gradients);
        grow(next.list.sums, memory.sums, size.sums);
        if (must_upload_tensors) grow(next.list.descriptors, memory.descriptors, size.descriptors());
        if (must_upload_chunks) grow(next.list.chunks, memory.chunks, size.chunks);
        // Nothing is thrown from here on.
        must_clear_controls = must_clear_controls || next.controls.holds(1);
        take_over(controls, next.controls);
        take_over(memory.kinds, next.list.kinds);
        take_over(memory.bad_elements, next.list.bad_elements, stepped, kept_stepped);
        take_over(memory.bad_gradients, next.list.bad_gradients, counted, kept_counted);
        take_over(memory.sums, next.list.sums);
        take_over(memory.descriptors, next.list.descriptors);
        take_over(memory.chunks, next.list.chunks);
    }

    void upload(const Sizes& size, cudaStream_t stream) {
        uses_device = true;
        allocate(size);
        auto& memory = *on_device;
        if (must_clear_controls) {  // zeros: no step was skipped before the first one
            check_cuda(cudaMemsetAsync(controls.as<void>(), 0, 2 * sizeof(Control), stream),
                       "cudaMemsetAsync");
            must_clear_controls = false;
        }
        if (must_upload_tensors) {
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
            uploader->upload(
                memory.chunks.as<void>(), size.chunks, [&](std::byte* to) { written(to, list.chunks()); },
                stream);
            must_upload_chunks = false;
        }
    }

    [[nodiscard]] Control* control(Use use) const {
        return controls.as<Control>() + (use == Use::kStep ? 0 : 1);
    }

    /// Chooses the memory for the counts of this use: the caller's, or the plan's own, which is set to zero.
    void begin_counts(Use use, std::uint64_t* callers, cudaStream_t stream) {
        if (use == Use::kNorm) return;
        auto& counts = use == Use::kStep ? stepped : counted;
        auto& own = use == Use::kStep ? on_device->bad_elements : on_device->bad_gradients;
        counts = {callers != nullptr ? callers : own.as<std::uint64_t>(), list.tensors().size()};
        auto& kept = use == Use::kStep ? kept_stepped : kept_counted;
        if (kept.holds(1)) {
            const RelaxedCapture relaxed;  // this stream may be captured
            kept.release();
        }
        if (callers == nullptr && counts.size != 0) {
            check_cuda(cudaMemsetAsync(counts.at, 0, counts.size * sizeof(std::uint64_t), stream),
                       "cudaMemsetAsync");
        }
    }

    /// Enqueues the computation of the scalars, the gradient factor and the decision to skip the step.
    void compute_scalars(const DeviceValues& values, Use use, cudaStream_t stream) {
        Preparation p;
        p.kinds = descriptor<KindSource>(sizes(use).tensors);
        p.kind_count = static_cast<std::uint32_t>(list.kinds().size());
        p.to = on_device->kinds.as<Kind>();
        p.control = control(use);
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
        // A counter of both the list and an item is advanced once.
        if (std::binary_search(counts.begin(), counts.end(), steps_done)) steps_done = nullptr;
        if (counts.empty() && steps_done == nullptr) return;
        const auto size = sizes(Use::kStep);
        const Advance launch{descriptor<std::int64_t*>(size.tensors + size.kinds),
                             static_cast<std::uint32_t>(counts.size()), stops_at_bad_gradients, steps_done,
                             control(Use::kStep)};
        check_cuda(launch_advance(launch, stream), "the launch that advances step counts");
    }

    void launch(Launcher Launchers::* kernel, Use use, bool stops_at_bad_gradients, cudaStream_t stream) {
        auto& memory = *on_device;
        for (const auto& range : list.ranges()) {
            const Launch launch{memory.chunks.as<Chunk>() + range.begin,
                                descriptor<DeviceTensor>(0),
                                memory.kinds.as<Kind>(),
                                control(use),
                                use == Use::kStep ? stepped.at : counted.at,
                                range.count,
                                list.groups_in_chunk(),
                                stops_at_bad_gradients};
            check_cuda((range.launchers.*kernel)(launch, stream), "the launch of a step's kernel");
        }
    }

    /// The Control of the last step (or of the last count or norm). Blocks.
    [[nodiscard]] Control read_control(Use use, cudaStream_t stream) const {
        Control read;
        if (!controls.holds(2 * sizeof(Control)) || must_clear_controls) return read;
        check_cuda(cudaMemcpyAsync(&read, control(use), sizeof read, cudaMemcpyDeviceToHost, stream),
                   "cudaMemcpyAsync");
        check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
        return read;
    }

    void read_counts(const Counts& from, std::span<std::uint64_t> counts, cudaStream_t stream) const {
        std::fill(counts.begin(), counts.end(), 0);
        const auto count = std::min(counts.size(), from.size);
        if (count != 0) {
            check_cuda(cudaMemcpyAsync(counts.data(), from.at, count * sizeof(std::uint64_t),
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
    bool uses_device = false;  // whether memory of the device was allocated
    DeviceTensorList list;
    bool must_upload_tensors = true, must_upload_chunks = true;
    std::vector<Loader> loaded;
    Counts stepped, counted;  // of the last step and of the last count
    NonFinite nonfinite = NonFinite::kSkipElement;
    std::unique_ptr<Uploader> uploader = std::make_unique<Uploader>();
    /// Two: one for steps, one for counts and norms. Captured graphs write to them too.
    CudaMemory<true> controls;
    bool must_clear_controls = false;
    CudaMemory<true> kept_stepped,
        kept_counted;  // hold `stepped` and `counted` if the list's memory has grown since
    std::unique_ptr<OnDevice> on_device = std::make_unique<OnDevice>();
    std::unique_ptr<OnDevice> idle;                   // the memory of steps outside of captures, set aside
    std::vector<std::unique_ptr<OnDevice>> captured;  // memory that graphs read
};

StepPlan::StepPlan(int device) : impl_(std::make_unique<Impl>(device)) {}
StepPlan::~StepPlan() = default;
StepPlan::StepPlan(StepPlan&&) noexcept = default;
StepPlan& StepPlan::operator=(StepPlan&&) noexcept = default;

int StepPlan::device() const { return impl_->device; }

void StepPlan::prepare(std::span<const StepItem> items, void* stream, const DeviceValues& values) {
    const CurrentDevice current(impl_->device);
    impl_->prepare(items, values, static_cast<cudaStream_t>(stream), Impl::Use::kStep);
}

void StepPlan::step(std::span<const StepItem> items, const StepOptions& options, void* stream) {
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    const auto use = Impl::Use::kStep;
    impl_->prepare(items, options.device, on, use);
    impl_->nonfinite = options.nonfinite;
    const bool stops = options.nonfinite != NonFinite::kSkipElement;
    impl_->begin_counts(use, options.device.bad_elements, on);
    impl_->compute_scalars(options.device, use, on);
    if (stops) impl_->launch(&Launchers::count_bad, use, stops, on);
    impl_->launch(&Launchers::step, use, stops, on);
    impl_->advance_counts(options.device.steps_done, stops, on);
}

void StepPlan::count_bad_gradients(std::span<const StepItem> items, const StepOptions& options,
                                   void* stream) {
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    const auto use = Impl::Use::kCount;
    impl_->prepare(items, options.device, on, use);
    auto values = options.device;
    values.found_inf = nullptr;
    impl_->begin_counts(use, values.bad_elements, on);
    impl_->compute_scalars(values, use, on);
    impl_->launch(&Launchers::count_bad, use, false, on);
}

std::uint64_t StepPlan::count_bad_gradients(std::span<const StepItem> items, const StepOptions& options,
                                            std::span<std::uint64_t> counts, void* stream) {
    count_bad_gradients(items, options, stream);
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    impl_->read_counts(impl_->counted, counts, on);
    return impl_->read_control(Impl::Use::kCount, on).bad_gradients;
}

void StepPlan::grad_norm(std::span<const StepItem> items, const DeviceValues& values, double* norm,
                         double max_norm, float* clip_coefficient, void* stream) {
    const CurrentDevice current(impl_->device);
    auto* const on = static_cast<cudaStream_t>(stream);
    const auto use = Impl::Use::kNorm;
    impl_->prepare(items, values, on, use);
    DeviceValues from;
    from.grad_scale = values.grad_scale;
    impl_->compute_scalars(from, use, on);
    const NormLaunch launch{impl_->descriptor<DeviceTensor>(0), static_cast<std::int64_t>(items.size()),
                            impl_->list.norm_blocks(), impl_->control(use),
                            impl_->on_device->sums.as<double>()};
    check_cuda(launch_norm(launch, norm, max_norm, clip_coefficient, on), "the launch of the gradient norm");
}

void StepPlan::bad_elements(std::span<std::uint64_t> counts, void* stream) const {
    const CurrentDevice current(impl_->device);
    impl_->read_counts(impl_->stepped, counts, static_cast<cudaStream_t>(stream));
}

const std::uint64_t* StepPlan::bad_elements() const { return impl_->stepped.at; }
const std::uint64_t* StepPlan::bad_gradients() const { return impl_->counted.at; }
void StepPlan::release_captured() { impl_->release_captured(); }

bool StepPlan::was_skipped(void* stream) const {
    const CurrentDevice current(impl_->device);
    const auto control = impl_->read_control(Impl::Use::kStep, static_cast<cudaStream_t>(stream));
    return control.is_skipped != 0 || control.bad_gradients != 0;
}

void StepPlan::check(void* stream) const {
    if (impl_->nonfinite != NonFinite::kError) return;
    const CurrentDevice current(impl_->device);
    const auto bad = impl_->read_control(Impl::Use::kStep, static_cast<cudaStream_t>(stream)).bad_gradients;
    if (bad == 0) return;
    throw NonFiniteError(std::to_string(bad) +
                         " elements of the gradients are NaN, infinite or at least 2^48: nothing was "
                         "stepped; lower the loss scale or choose NonFinite::kSkipElement");
}

}  // namespace flashoptim::cuda
