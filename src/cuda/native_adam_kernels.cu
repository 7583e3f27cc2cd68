// Kernels of Adam and AdamW in this project's order of operations.
#include "cuda/kernel_lists.cuh"

namespace flashoptim::cuda {

FLASHOPTIM_NATIVE_WEIGHTS(AdamRule, NativeMoments)
FLASHOPTIM_NATIVE_WEIGHTS(AdamRule, Float32Moments)

}  // namespace flashoptim::cuda
