// Kernels of AdEMAMix.
#include "cuda/kernel_lists.cuh"

namespace flashoptim::cuda {

FLASHOPTIM_NATIVE_WEIGHTS(AdemamixRule, NativeMoments)
FLASHOPTIM_NATIVE_WEIGHTS(AdemamixRule, Float32Moments)

}  // namespace flashoptim::cuda
