// Kernels of Lion in this project's order of operations.
#include "cuda/kernel_lists.cuh"

namespace flashoptim::cuda {

FLASHOPTIM_NATIVE_WEIGHTS(LionRule, NativeMoments)
FLASHOPTIM_NATIVE_WEIGHTS(LionRule, Float32Moments)

}  // namespace flashoptim::cuda
