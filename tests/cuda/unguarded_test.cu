// The divisions and roots without a check of their operands' ranges: equal to the correctly rounded ones for
// every significand of a root, and for many quotients. If these fail, a GPU rounds otherwise than the ones
// known, and its bits are not those of the CPU.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>

#include "need_device.h"
#include "step/lanes/cuda_thread.h"

namespace flashoptim::cuda {

namespace {

using Fast = CudaUnguardedLanes;

/// What the blocks of a kernel report.
struct Tally {
    unsigned long long different = 0;
    unsigned long long blocks = 0;  // that ran: a launch that failed finds no difference either
};

__device__ void count_block(Tally* tally) {
    if (threadIdx.x == 0) atomicAdd(&tally->blocks, 1ULL);
}

/// Both binades of a root, over the exponents in use: every float from 2^exponent up to 2^(exponent + 2).
__global__ void compare_roots(int exponent, Tally* tally) {
    count_block(tally);
    const auto n = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n == 0 && Fast::bits(Fast::sqrt(0.0F)) != 0) atomicAdd(&tally->different, 1ULL);
    const auto a =
        Fast::from_bits((static_cast<std::uint32_t>(exponent + 127) << 23U) + static_cast<std::uint32_t>(n));
    if (Fast::bits(Fast::sqrt(a)) != Fast::bits(ScalarLanes::sqrt(a))) atomicAdd(&tally->different, 1ULL);
}

__device__ std::uint32_t mixed(std::uint64_t n) {
    n = (n ^ (n >> 30U)) * 0xBF58476D1CE4E5B9U;  // SplitMix64
    n = (n ^ (n >> 27U)) * 0x94D049BB133111EBU;
    return static_cast<std::uint32_t>(n >> 32U);
}
/// Operands over the whole of the ranges that they may have, and every divisor's significand.
__global__ void compare_quotients(std::uint64_t seed, Tally* tally) {
    count_block(tally);
    const auto n = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const auto random = mixed((seed << 32U) + n + 0x9E3779B97F4A7C15U),
               exponents = mixed(~((seed << 32U) + n));
    const auto divisor =
        ((127U - 60U + exponents % 90U) << 23U) | (static_cast<std::uint32_t>(n) & 0x7fffffU);
    const auto dividend = ((127U - 96U + (exponents >> 16U) % 156U) << 23U) | (random & 0x807fffffU);
    const auto a = n % 1024 == 0 ? Fast::from_bits(random & 0x80000000U) : Fast::from_bits(dividend);
    const auto d = Fast::from_bits(divisor);
    // Without a limit, and with one that many quotients pass.
    for (const auto limit : {Fast::from_bits(kInfinityBits), 1.0F}) {
        const auto expected = ScalarLanes::smaller_magnitude(ScalarLanes::divide(a, d), limit);
        if (Fast::bits(Fast::limited_quotient(a, d, limit)) != Fast::bits(expected)) {
            atomicAdd(&tally->different, 1ULL);
        }
    }
}

/// Over `runs` calls of `launch`.
template <class Launch>
Tally tally_of(int runs, Launch launch) {
    Tally* on_device = nullptr;
    Tally tally;
    EXPECT_EQ(cudaMalloc(&on_device, sizeof tally), cudaSuccess);
    EXPECT_EQ(cudaMemset(on_device, 0, sizeof tally), cudaSuccess);
    for (int n = 0; n < runs; ++n) launch(n, on_device);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(&tally, on_device, sizeof tally, cudaMemcpyDeviceToHost), cudaSuccess);
    (void)cudaFree(on_device);
    return tally;
}

class CudaUnguarded : public OnDevice {};

}  // namespace

TEST_F(CudaUnguarded, RootsAreCorrectlyRounded) {
    constexpr unsigned kBlocks = 1U << 16U;
    const auto tally =
        tally_of(98, [](int n, Tally* to) { compare_roots<<<kBlocks, 256>>>(-96 + 2 * n, to); });
    EXPECT_EQ(tally.different, 0U);
    EXPECT_EQ(tally.blocks, 98ULL * kBlocks);
}

TEST_F(CudaUnguarded, QuotientsAreCorrectlyRounded) {
    constexpr unsigned kBlocks = 1U << 18U;
    const auto tally = tally_of(
        64, [](int n, Tally* to) { compare_quotients<<<kBlocks, 256>>>(static_cast<std::uint64_t>(n), to); });
    EXPECT_EQ(tally.different, 0U);
    EXPECT_EQ(tally.blocks, 64ULL * kBlocks);
}

}  // namespace flashoptim::cuda
