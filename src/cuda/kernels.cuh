// The step's kernels on the device: a team of real threads, and the functions that start them. Included by the .cu files, which
// share the kernels out among themselves so that none takes long to compile.
#pragma once

#include <cuda_runtime.h>

#include "cuda/block_step.h"
#include "cuda/launch_kernel.cuh"
#include "cuda/launchers.h"

namespace flashoptim::cuda {

/// The thread that runs this, as one of its block.
template <class ThreadType>
class DeviceTeam {
public:
    using Thread = ThreadType;

    template <class Body>
    __device__ __forceinline__ void each(Body body) {
        body(thread_, static_cast<int>(threadIdx.x));
    }
    /// Groups are four neighbouring threads of a warp. Each thread learns the maximum that it needs for its scale.
    __device__ __forceinline__ void share_maxima() {
        if constexpr (Thread::kHasTwoScales) {
            // One exchange between neighbours serves both moments: each gives away the one that it does not need.
            const bool second = Thread::scales_second(static_cast<int>(threadIdx.x));
            const auto mine = second ? thread_.largest_second : thread_.largest_first;
            const auto given = second ? thread_.largest_first : thread_.largest_second;
            auto largest = max(mine, __shfl_xor_sync(kAllLanes, given, 1));
            largest = max(largest, __shfl_xor_sync(kAllLanes, largest, 2));
            thread_.largest_first = thread_.largest_second = largest;
        } else {
            auto largest = max(thread_.largest_first, thread_.largest_second);  // one of them is zero
            largest = max(largest, __shfl_xor_sync(kAllLanes, largest, 1));
            largest = max(largest, __shfl_xor_sync(kAllLanes, largest, 2));
            thread_.largest_first = thread_.largest_second = largest;
        }
        // All have read the old scale before one of them writes the new one.
        __syncwarp();
    }
    /// Between those that chose the first moment's scale and those that chose the second's.
    __device__ __forceinline__ void share_scales() {
        thread_.other_scale = __shfl_xor_sync(kAllLanes, thread_.scale, 1);
        thread_.other_encode = __shfl_xor_sync(kAllLanes, thread_.encode, 1);
    }
    static __device__ __forceinline__ void add(std::uint64_t* counter, unsigned count) {
        atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(count));
    }
    /// Every thread calls it, also with 0: one of each warp adds for all.
    template <class... Counter>
    static __device__ __forceinline__ void add_of_all(unsigned count, Counter*... counters) {
        const auto sum = __reduce_add_sync(kAllLanes, count);
        if (sum != 0 && threadIdx.x % warpSize == 0) (add(counters, sum), ...);
    }

private:
    static constexpr unsigned kAllLanes = 0xffffffffU;
    Thread thread_;
};

template <class R, class M, class W>
__global__ void __launch_bounds__(kThreads) step_kernel(const __grid_constant__ Launch launch) {
    DeviceTeam<ThreadStep<R, M, W>> team;
    step_chunk(team, launch, blockIdx.x);
}
template <class R, class W>
__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ Launch launch) {
    DeviceTeam<ThreadCount<R, W>> team;
    count_chunk(team, launch, blockIdx.x);
}

template <class R, class M, class W>
cudaError_t launch_step(const Launch& launch, void* stream) {
    return launch_kernel(&step_kernel<R, M, W>, launch.chunk_count, kThreads, stream, launch);
}
template <class R, class W>
cudaError_t launch_count(const Launch& launch, void* stream) {
    return launch_kernel(&count_kernel<R, W>, launch.chunk_count, kThreads, stream, launch);
}
template <class R, class M, class W>
cudaError_t load_step() {
    return load_kernel(&step_kernel<R, M, W>);
}
template <class R, class W>
cudaError_t load_count() {
    return load_kernel(&count_kernel<R, W>);
}

}  // namespace flashoptim::cuda
