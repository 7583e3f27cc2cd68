// The functions that start kernels, and those that load them, which CUDA else does at their first launch;
// each returns what CUDA said of it. They are defined in the .cu files.
#pragma once

#include <type_traits>

#include "cuda/tensor_list.h"
#include "step/kernel_types.h"

namespace flashoptim::cuda {

struct Advance;
struct NormLaunch;
struct Preparation;

/// The rule whose counting kernel serves all rules with weights of this format: the
/// paper's alone are not protected.
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

/// Scalars and control block of a step.
cudaError_t launch_preparation(const Preparation& preparation, void* stream);
/// Advances step counts in device memory, if the step was not left out.
cudaError_t launch_advance(const Advance& launch, void* stream);
/// The norm into *norm, and what clips it to max_norm into *coefficient where that is not null.
cudaError_t launch_norm(const NormLaunch& launch, double* norm, double max_norm, float* coefficient,
                        void* stream);
/// Loads all kernels of the three.
cudaError_t load_whole_step();

}  // namespace flashoptim::cuda
