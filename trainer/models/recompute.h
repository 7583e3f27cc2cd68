// Activation checkpointing, which LibTorch does not have: a part of a model whose activations are computed
// again in backward. Knows no model.
#pragma once

#include <functional>
#include <vector>

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::trainer {

/// Runs `body(input)` and keeps only `input`; backward runs `body` again and differentiates it. `parameters`
/// are the leaves that `body` reads. Output and gradients equal those of calling `body` directly, bit for
/// bit, provided that `body` is deterministic. Parameter gradients leave through the outer graph, so that
/// hooks after accumulation fire once per parameter and backward, also for parameters shared between several
/// recomputed parts. Autocast is as it was in forward. With gradients disabled it is a plain call.
torch::Tensor recompute_in_backward(std::function<torch::Tensor(const torch::Tensor&)> body,
                                    const torch::Tensor& input, const std::vector<torch::Tensor>& parameters);

}  // namespace flashoptim::trainer
