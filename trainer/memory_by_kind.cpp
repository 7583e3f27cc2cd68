// Counting of bytes by kind.
#include "trainer/memory_by_kind.h"

namespace flashoptim::trainer {

MemoryByKind memory_by_kind(const Model& model, const libtorch::FlashOptimizer& optimizer,
                            const GradientAccumulator* accumulator) {
    const MemoryReport report = optimizer.memory_report();
    MemoryByKind memory;
    for (const torch::Tensor& parameter : model.parameters()) {
        memory.parameters += parameter.numel();
        // Sums that were handed to the optimizer are its gradients too; here they have a line of their own.
        memory.gradients +=
            parameter.grad().defined() ? static_cast<std::int64_t>(parameter.grad().nbytes()) : 0;
    }
    memory.weights = static_cast<std::int64_t>(report.weights);
    memory.corrections = static_cast<std::int64_t>(report.corrections);
    memory.moments = static_cast<std::int64_t>(report.moments);
    memory.scales = static_cast<std::int64_t>(report.scales);
    memory.accumulators = accumulator == nullptr ? 0 : accumulator->bytes();
    memory.autocast_copies = model.autocast_copy_bytes();
    return memory;
}

}  // namespace flashoptim::trainer
