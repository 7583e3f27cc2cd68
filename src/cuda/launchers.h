// Launch and preload functions for every kernel, defined in the .cu files. CUDA loads a kernel at its first
// launch. Preloading moves that cost and its out-of-memory error out of the step. All return cudaError_t.
#pragma once

#include <type_traits>

#include "cuda/tensor_list.h"
#include "step/kernel_types.h"

namespace flashoptim::cuda {

struct Advance;
struct NormLaunch;
struct Preparation;

/// The rule whose counting kernel serves all rules with this weight format. Only the paper's formats are not
/// protected.
template <class W>
using CountingRule = std::conditional_t<W::kProtected, SgdRule<false>, PaperSgdRule<false>>;

template <class R, class M, class W>
cudaError_t launch_step(const Launch& launch, void* stream);
template <class R, class W>
cudaError_t launch_count(const Launch& launch, void* stream);
template <class R, class M, class W>
cudaError_t load_step();
template <class R, class W>
cudaError_t load_count();

template <class R, class M, class W>
constexpr Launchers kLaunchers = {&launch_step<R, M, W>, &launch_count<CountingRule<W>, W>,
                                  &load_step<R, M, W>, &load_count<CountingRule<W>, W>};

/// Computes the scalars and the Control of a step.
cudaError_t launch_preparation(const Preparation& preparation, void* stream);
/// Advances the step counts in device memory, unless the step was skipped.
cudaError_t launch_advance(const Advance& launch, void* stream);
/// Writes the norm to *norm, and the coefficient that clips it to max_norm to *coefficient, unless that is
/// null.
cudaError_t launch_norm(const NormLaunch& launch, double* norm, double max_norm, float* coefficient,
                        void* stream);
/// Loads the kernels of launch_preparation(), launch_advance() and launch_norm().
cudaError_t load_whole_step();

}  // namespace flashoptim::cuda
