// The CUDA kernels as plain C++: the same source, with a team whose threads run one after the other between
// the points where they exchange something. What a machine without a GPU can prove of them. The functions
// that start kernels run them at once.
#include <algorithm>
#include <memory>

#include "cuda/block_step.h"
#include "cuda/launchers.h"
#include "cuda/whole_step.h"
#include "emulated_runtime.h"

namespace flashoptim::cuda {

namespace {

/// A block of threads. Odd blocks run theirs in reverse, so that nothing can rest on an order.
template <class ThreadType>
class EmulatedTeam {
public:
    using Thread = ThreadType;

    explicit EmulatedTeam(bool reversed) : reversed_(reversed) {
        const emulated::OwnMemory own;
        threads_ = std::make_unique<Thread[]>(kThreads);
    }

    template <class Body>
    void each(Body body) {
        for (int n = 0; n < kThreads; ++n) {
            const int chosen = reversed_ ? kThreads - 1 - n : n;
            body(threads_[static_cast<std::size_t>(chosen)], chosen);
        }
    }
    void share_maxima() {
        for (std::size_t group = 0; group < kThreads; group += kThreadsInGroup) {
            for (int moment = 0; moment < Thread::kScales; ++moment) {
                std::uint32_t largest = 0;
                for (std::size_t n = group; n < group + kThreadsInGroup; ++n) {
                    largest = std::max(largest, threads_[n].largest[moment]);
                }
                for (std::size_t n = group; n < group + kThreadsInGroup; ++n) {
                    threads_[n].largest[moment] = largest;
                }
            }
        }
    }
    void share_scales() {
        for (std::size_t group = 0; group < kThreads; group += kThreadsInGroup) {
            for (int moment = 0; moment < Thread::kScales; ++moment) {
                const auto& chose = threads_[group + static_cast<std::size_t>(moment)];
                const float scale = chose.scale[moment], encode = chose.encode[moment];
                for (std::size_t n = group; n < group + kThreadsInGroup; ++n) {
                    threads_[n].scale[moment] = scale;
                    threads_[n].encode[moment] = encode;
                }
            }
        }
    }
    static void add(std::uint64_t* counter, unsigned count) { *counter += count; }
    template <class... Counter>
    static void add_of_all(unsigned count, Counter*... counters) {
        (add(counters, count), ...);
    }

private:
    std::unique_ptr<Thread[]> threads_;
    bool reversed_;
};

/// A kernel goes by the function that launches it.
template <class Launch>
emulated::Kernel kernel_of(Launch* launch) {
    return reinterpret_cast<emulated::Kernel>(launch);
}

}  // namespace

template <class R, class M, class W>
cudaError_t launch_step(const Launch& launch, void* /*stream*/) {
    if (const auto error = emulated::launched(kernel_of(&launch_step<R, M, W>)); error != cudaSuccess)
        return error;
    for (std::uint32_t block = 0; block < launch.chunk_count; ++block) {
        EmulatedTeam<ThreadStep<R, M, W>> team(block % 2 == 1);
        step_chunk(team, launch, block);
    }
    return cudaSuccess;
}
template <class R, class W>
cudaError_t launch_count(const Launch& launch, void* /*stream*/) {
    if (const auto error = emulated::launched(kernel_of(&launch_count<R, W>)); error != cudaSuccess)
        return error;
    for (std::uint32_t block = 0; block < launch.chunk_count; ++block) {
        EmulatedTeam<ThreadCount<R, W>> team(block % 2 == 1);
        count_chunk(team, launch, block);
    }
    return cudaSuccess;
}
template <class R, class M, class W>
cudaError_t load_step() {
    return emulated::load(kernel_of(&launch_step<R, M, W>));
}
template <class R, class W>
cudaError_t load_count() {
    return emulated::load(kernel_of(&launch_count<R, W>));
}

/// Nobody calls it: it makes the compiler instantiate every kernel.
Launchers emulated_launchers(Rule rule, const StoragePlan& plan);
Launchers emulated_launchers(Rule rule, const StoragePlan& plan) {
    return visit_kernel_types(rule, plan, []<class R, class M, class W>() { return kLaunchers<R, M, W>; });
}

cudaError_t launch_preparation(const Preparation& preparation, void* /*stream*/) {
    if (const auto error = emulated::launched(kernel_of(&launch_preparation)); error != cudaSuccess)
        return error;
    for (std::uint32_t n = 0; n < preparation.kind_count; ++n) prepare_kind(preparation, n);
    prepare_control(preparation);
    return cudaSuccess;
}
cudaError_t launch_advance(const Advance& launch, void* /*stream*/) {
    if (const auto error = emulated::launched(kernel_of(&launch_advance)); error != cudaSuccess) return error;
    for (std::uint32_t n = 0; n <= launch.count; ++n) advance(launch, n);
    return cudaSuccess;
}
cudaError_t launch_norm(const NormLaunch& launch, double* norm, double max_norm, float* coefficient,
                        void* /*stream*/) {
    if (const auto error = emulated::launched(kernel_of(&launch_norm)); error != cudaSuccess) return error;
    for (std::int64_t block = 0; block < launch.blocks; ++block) {
        double parts[kNormSums];
        for (int part = 0; part < kNormSums; ++part) parts[part] = norm_part(launch, block, part);
        launch.sums[block] = added_up(parts, kNormSums);
    }
    double totals[kNormTotals];
    for (int n = 0; n < kNormTotals; ++n) totals[n] = norm_total(launch, n);
    *norm = double_sqrt(added_up(totals, kNormTotals));
    if (coefficient != nullptr) *coefficient = clip_coefficient(*norm, max_norm);
    return cudaSuccess;
}
cudaError_t load_whole_step() {
    for (const auto kernel :
         {kernel_of(&launch_preparation), kernel_of(&launch_advance), kernel_of(&launch_norm)}) {
        if (const auto error = emulated::load(kernel); error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

}  // namespace flashoptim::cuda
