// Kernels of Lion in the paper's format.
#include "cuda/kernel_lists.cuh"

namespace flashoptim::cuda {

FLASHOPTIM_PAPER_WEIGHTS(PaperLionRule, PaperMoments)
FLASHOPTIM_PAPER_WEIGHTS(PaperLionRule, Float32Moments)

}  // namespace flashoptim::cuda
