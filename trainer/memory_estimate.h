// A lower bound of the memory that a run needs, from its options alone. Allocates nothing. memory.h counts
// what a run has used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "trainer/available_memory.h"
#include "trainer/train_options.h"

namespace flashoptim::trainer {

/// The bytes that a run certainly needs. 2^63 - 1 if the number does not fit in 64 bits.
struct MemoryNeed {
    std::int64_t weights = 0;
    std::int64_t gradients =
        0;  ///< when the optimizer steps: of all parameters, or of one with gradient release
    std::int64_t states = 0;        ///< of the optimizer: corrections, moments, scales
    std::int64_t accumulators = 0;  ///< fp32 sums of gradients over micro-batches
    std::int64_t activations =
        0;  ///< of a micro-batch, at the end of its forward pass: with its tokens and logits
    std::int64_t initial = 0;  ///< the fp32 draw of the largest parameter, when the model is made

    /// The largest sum of these at any moment of the run.
    [[nodiscard]] std::int64_t peak() const;
};

/// A lower bound: what LibTorch takes for itself, for scratch and for copies is not in it. `options` have a
/// vocabulary size and are valid; Throws InvalidArgument as llama_config() does.
MemoryNeed memory_need(const TrainOptions& options);

/// Throws InvalidArgument with both figures and the remedies where a run needs more memory than `available`,
/// if the system says what that is. On a GPU the host needs no more than the model, before it moves there.
void require_memory(const TrainOptions& options,
                    const std::optional<AvailableMemory>& available = available_memory());

/// The same of anything that needs so many bytes: "`what` needs at least 2.0 GiB of memory, and the system
/// has ... left; `remedy`".
void require_memory(std::int64_t needed, const std::string& what, const std::string& remedy,
                    const std::optional<AvailableMemory>& available = available_memory());

}  // namespace flashoptim::trainer
