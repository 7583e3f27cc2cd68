// Kernels of Adan.
#include "cuda/kernel_lists.cuh"

namespace flashoptim::cuda {

FLASHOPTIM_NATIVE_WEIGHTS(AdanRule, NativeMoments)
FLASHOPTIM_NATIVE_WEIGHTS(AdanRule, Float32Moments)

}  // namespace flashoptim::cuda
