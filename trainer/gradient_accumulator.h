// Sums of gradients over micro-batches in fp32: a 16-bit sum loses what is below 2^-8 of it.
// Knows no optimizer and no model.
#pragma once

#include <memory>
#include <vector>

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::trainer {

/// Adds the gradient of each parameter to an fp32 sum as soon as backward has completed it, and frees the
/// gradient. Lives beside the parameters of a model; its hooks go with it. Not thread-safe; backward passes
/// must not overlap with its destruction.
class GradientAccumulator {
public:
    /// Throws InvalidArgument if a parameter has another hook of this kind.
    explicit GradientAccumulator(const std::vector<torch::Tensor>& parameters);
    ~GradientAccumulator();
    GradientAccumulator(const GradientAccumulator&) = delete;
    GradientAccumulator& operator=(const GradientAccumulator&) = delete;

    /// The sum of parameter `index` since the last clear(), fp32, of its shape; undefined if
    /// no gradient came. No copy.
    torch::Tensor sum(std::size_t index) const;

    /// Forgets the sums; their memory stays for the next step.
    void clear();

    /// Bytes of all sums.
    std::int64_t bytes() const;

private:
    struct Slot;
    std::vector<torch::Tensor> parameters_;
    std::vector<std::shared_ptr<Slot>> slots_;
};

}  // namespace flashoptim::trainer
