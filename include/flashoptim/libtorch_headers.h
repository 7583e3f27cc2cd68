// The headers of LibTorch that come with libtorch.h: all of torch/torch.h. A file that first defines
// FLASHOPTIM_LIGHT_LIBTORCH gets only what libtorch.h itself needs, and compiles faster: tensors, autograd,
// torch::nn::Module, optimizers and serialization.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#if defined(FLASHOPTIM_LIGHT_LIBTORCH)
#include <torch/autograd.h>
#include <torch/cuda.h>
#include <torch/optim.h>
#include <torch/serialize.h>
#include <torch/types.h>
#include <torch/utils.h>
#else
#include <torch/torch.h>
#endif

#endif
