// Bytes that a run's parameters take, by kind, counted in the tensors. What the operating system
// measures: process_memory.h.
#pragma once

#include "flashoptim/libtorch.h"
#include "trainer/gradient_accumulator.h"
#include "trainer/models/model.h"
#include "trainer/progress.h"

namespace flashoptim::trainer {

/// Counted at this moment: call it when the optimizer has its state and the gradients are there.
/// `accumulator` may be null.
MemoryByKind memory_by_kind(const Model& model, const libtorch::FlashOptimizer& optimizer,
                            const GradientAccumulator* accumulator);

}  // namespace flashoptim::trainer
