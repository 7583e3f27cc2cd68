// The kernels of a step: the Team of device threads, the kernels and their launch functions. Only the .cu
// files include this. They divide the kernels among themselves, so that no file takes long to compile.
#pragma once

#include <cuda_runtime.h>

#include "cuda/block_step.h"
#include "cuda/launch_kernel.cuh"
#include "cuda/launchers.h"

namespace flashoptim::cuda {

/// The Team (block_step.h) of a thread block, as seen by the thread that runs the code.
template <class ThreadType>
class DeviceTeam {
public:
    using Thread = ThreadType;

    template <class Body>
    __device__ __forceinline__ void each(Body body) {
        body(thread_, static_cast<int>(threadIdx.x));
    }
    /// A group is four neighbouring threads of a warp. Each thread receives the group's maximum of the moment
    /// whose scale it chooses.
    __device__ __forceinline__ void share_maxima() {
        if constexpr (Thread::kScales == 2) {
            // One exchange between neighbours serves both moments: each thread sends the maximum that it does
            // not need.
            const bool second = Thread::moment_of(static_cast<int>(threadIdx.x)) == 1;
            const auto mine = second ? thread_.largest[1] : thread_.largest[0];
            const auto given = second ? thread_.largest[0] : thread_.largest[1];
            auto largest = max(mine, __shfl_xor_sync(kAllLanes, given, 1));
            largest = max(largest, __shfl_xor_sync(kAllLanes, largest, 2));
            thread_.largest[0] = thread_.largest[1] = largest;
        } else {
#pragma unroll
            for (int n = 0; n < Thread::kScales; ++n) {
                auto& largest = thread_.largest[n];
                largest = max(largest, __shfl_xor_sync(kAllLanes, largest, 1));
                largest = max(largest, __shfl_xor_sync(kAllLanes, largest, 2));
            }
        }
        // Every thread must have read the old scale before one of them writes the new one.
        __syncwarp();
    }
    /// Every thread receives all scales of its group. Thread n of the group chose that of moment n.
    __device__ __forceinline__ void share_scales() {
        const auto first = static_cast<int>(threadIdx.x) / kThreadsInGroup * kThreadsInGroup;
#pragma unroll
        for (int n = 0; n < Thread::kScales; ++n) {
            thread_.scale[n] = __shfl_sync(kAllLanes, thread_.scale[n], first + n);
            thread_.encode[n] = __shfl_sync(kAllLanes, thread_.encode[n], first + n);
        }
    }
    static __device__ __forceinline__ void add(std::uint64_t* counter, unsigned count) {
        atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(count));
    }
    /// Adds the sum over the warp. Every thread must call it, also with 0.
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
