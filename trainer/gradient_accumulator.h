// Sums gradients over micro-batches in fp32. A 16-bit sum would lose addends below 2^-8 of the sum. Knows no
// optimizer and no model.
#pragma once

#include <memory>
#include <vector>

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::trainer {

/// Adds the gradient of each parameter to an fp32 sum as soon as backward has completed it, then frees the
/// gradient. The destructor removes its hooks. Not thread-safe; a backward pass must not overlap with the
/// destructor.
class GradientAccumulator {
public:
    /// Throws InvalidArgument if a parameter has another hook of this kind.
    explicit GradientAccumulator(const std::vector<torch::Tensor>& parameters);
    ~GradientAccumulator();
    GradientAccumulator(const GradientAccumulator&) = delete;
    GradientAccumulator& operator=(const GradientAccumulator&) = delete;

    /// The sum for parameter `index` since the last clear(): fp32, in the parameter's shape. Undefined if
    /// there was no gradient. Not a copy.
    torch::Tensor sum(std::size_t index) const;

    /// Resets the sums. Their memory is kept for the next step.
    void clear();

    /// The bytes of all sums.
    std::int64_t bytes() const;

private:
    struct Slot;
    std::vector<torch::Tensor> parameters_;
    std::vector<std::shared_ptr<Slot>> slots_;
};

}  // namespace flashoptim::trainer
