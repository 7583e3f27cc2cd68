// The kernels that count bad gradients, and those for the work that is done once per step.
#include "cuda/kernels.cuh"
#include "cuda/whole_step.h"

namespace flashoptim::cuda {

#define FLASHOPTIM_COUNT_KERNEL(...)                                                                 \
    template cudaError_t launch_count<CountingRule<__VA_ARGS__>, __VA_ARGS__>(const Launch&, void*); \
    template cudaError_t load_count<CountingRule<__VA_ARGS__>, __VA_ARGS__>();

FLASHOPTIM_COUNT_KERNEL(NativeFloat32Weight)
FLASHOPTIM_COUNT_KERNEL(Bfloat16Weight24)
FLASHOPTIM_COUNT_KERNEL(Bfloat16Weight32)
FLASHOPTIM_COUNT_KERNEL(Bfloat16WeightDithered)
FLASHOPTIM_COUNT_KERNEL(Bfloat16WeightNearest)
FLASHOPTIM_COUNT_KERNEL(Float16Weight24)
FLASHOPTIM_COUNT_KERNEL(Float16Weight32)
FLASHOPTIM_COUNT_KERNEL(Float16WeightDithered)
FLASHOPTIM_COUNT_KERNEL(Float16WeightNearest)
FLASHOPTIM_COUNT_KERNEL(PaperFloat32Weight)
FLASHOPTIM_COUNT_KERNEL(PaperWeight<PaperBfloat16, std::int8_t>)
FLASHOPTIM_COUNT_KERNEL(PaperWeight<PaperBfloat16, std::int16_t>)
FLASHOPTIM_COUNT_KERNEL(PaperPlainWeight<PaperBfloat16>)
FLASHOPTIM_COUNT_KERNEL(PaperWeight<PaperFloat16, std::int8_t>)
FLASHOPTIM_COUNT_KERNEL(PaperWeight<PaperFloat16, std::int16_t>)
FLASHOPTIM_COUNT_KERNEL(PaperPlainWeight<PaperFloat16>)

namespace {

/// Threads of a block that computes scalars or advances counters. Few, because each has much to compute.
constexpr unsigned kScalarThreads = 32;

__global__ void preparation_kernel(const __grid_constant__ Preparation preparation) {
    const auto n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n < preparation.kind_count) prepare_kind(preparation, n);
    if (n == 0) prepare_control(preparation);
}
static_assert(sizeof(Preparation) <= 4096, "arguments of a kernel are at most 4 KiB before CUDA 12.1");

__global__ void advance_kernel(const __grid_constant__ Advance launch) {
    advance(launch, blockIdx.x * blockDim.x + threadIdx.x);
}

__global__ void __launch_bounds__(kThreads) norm_kernel(const __grid_constant__ NormLaunch launch) {
    __shared__ double parts[kThreads];
    const auto block = static_cast<std::int64_t>(blockIdx.x) * kNormBlocksInBlock + threadIdx.x / kNormSums;
    const auto part = static_cast<int>(threadIdx.x % kNormSums);
    if (block < launch.blocks) parts[threadIdx.x] = norm_part(launch, block, part);
    __syncthreads();
    if (block < launch.blocks && part == 0) {
        launch.sums[block] = added_up(parts + threadIdx.x, kNormSums);
    }
}

__global__ void __launch_bounds__(kNormTotals)
    norm_sum_kernel(const __grid_constant__ NormLaunch launch, double* norm, double max_norm,
                    float* coefficient) {
    __shared__ double totals[kNormTotals];
    totals[threadIdx.x] = norm_total(launch, static_cast<int>(threadIdx.x));
    __syncthreads();
    if (threadIdx.x != 0) return;
    *norm = double_sqrt(added_up(totals, kNormTotals));
    if (coefficient != nullptr) *coefficient = clip_coefficient(*norm, max_norm);
}

}  // namespace

cudaError_t launch_preparation(const Preparation& preparation, void* stream) {
    const auto blocks = preparation.kind_count / kScalarThreads + 1;
    return launch_kernel(&preparation_kernel, blocks, kScalarThreads, stream, preparation);
}
cudaError_t launch_advance(const Advance& launch, void* stream) {
    const auto blocks = launch.count / kScalarThreads + 1;
    return launch_kernel(&advance_kernel, blocks, kScalarThreads, stream, launch);
}
cudaError_t launch_norm(const NormLaunch& launch, double* norm, double max_norm, float* coefficient,
                        void* stream) {
    const auto blocks = static_cast<unsigned>((launch.blocks + kNormBlocksInBlock - 1) / kNormBlocksInBlock);
    if (blocks != 0) {
        const auto status = launch_kernel(&norm_kernel, blocks, kThreads, stream, launch);
        if (status != cudaSuccess) return status;
    }
    return launch_kernel(&norm_sum_kernel, 1, kNormTotals, stream, launch, norm, max_norm, coefficient);
}
cudaError_t load_whole_step() {
    for (const auto status : {load_kernel(&preparation_kernel), load_kernel(&advance_kernel),
                              load_kernel(&norm_kernel), load_kernel(&norm_sum_kernel)}) {
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace flashoptim::cuda
