// Kernels of SGD and SGDW in this project's order of operations.
#include "cuda/kernel_lists.cuh"

namespace flashoptim::cuda {

FLASHOPTIM_NATIVE_WEIGHTS(SgdRule<true>, NativeMoments)
FLASHOPTIM_NATIVE_WEIGHTS(SgdRule<true>, Float32Moments)
FLASHOPTIM_NATIVE_WEIGHTS(SgdRule<false>, Float32Moments)

}  // namespace flashoptim::cuda
