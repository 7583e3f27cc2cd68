// Kernels of SGD and SGDW in the paper's format.
#include "cuda/kernel_lists.cuh"

namespace flashoptim::cuda {

FLASHOPTIM_PAPER_WEIGHTS(PaperSgdRule<true>, PaperMoments)
FLASHOPTIM_PAPER_WEIGHTS(PaperSgdRule<true>, Float32Moments)
FLASHOPTIM_PAPER_WEIGHTS(PaperSgdRule<false>, Float32Moments)

}  // namespace flashoptim::cuda
