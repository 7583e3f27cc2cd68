// Kernels of Adam and AdamW in the paper's format.
#include "cuda/kernel_lists.cuh"

namespace flashoptim::cuda {

FLASHOPTIM_PAPER_WEIGHTS(PaperAdamRule, PaperMoments)
FLASHOPTIM_PAPER_WEIGHTS(PaperAdamRule, Float32Moments)

}  // namespace flashoptim::cuda
