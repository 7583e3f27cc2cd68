// The bytes of a run's parameters, by kind, counted from the tensors. process_memory.h has what the operating
// system measures.
#pragma once

#include "flashoptim/libtorch.h"
#include "trainer/gradient_accumulator.h"
#include "trainer/models/model.h"
#include "trainer/progress.h"

namespace flashoptim::trainer {

/// Counts the bytes now. Call it when the optimizer has its state and the gradients exist. `accumulator` may
/// be null.
MemoryByKind memory_by_kind(const Model& model, const libtorch::FlashOptimizer& optimizer,
                            const GradientAccumulator* accumulator);

}  // namespace flashoptim::trainer
