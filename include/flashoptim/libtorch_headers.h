// The headers of LibTorch that come with libtorch.h: all of torch/torch.h.
//
// A file that defines FLASHOPTIM_LIGHT_LIBTORCH before gets only those that libtorch.h needs: tensors,
// autograd, torch::nn::Module, optimizers and serialization. It compiles about 2 s faster with a precompiled
// header, and 8 s without.
#pragma once

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
