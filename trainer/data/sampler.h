// Chooses the tokens of a training step as a function of the seed and the step alone, so that resuming needs
// only the step number. No torch header here.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/data/token_source.h"

namespace flashoptim::trainer {

/// One batch for a language model. Row r of `targets` is row r of `inputs`, shifted by one token. Row-major
/// (rows, sequence).
struct TokenBatch {
    std::int64_t rows = 0;
    std::int64_t sequence = 0;
    std::vector<std::int64_t> inputs;
    std::vector<std::int64_t> targets;
};

/// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the first 64 of its 128
/// bits, a function of key and counter without state.
std::uint64_t philox(std::uint64_t key, std::uint64_t counter_low, std::uint64_t counter_high);

/// Rows [first_row, first_row + rows) of training step `step`: windows of `data` whose start is uniformly
/// random. A row depends only on (seed, step, index in the step), so four micro-batches of four rows are the
/// same rows as one batch of 16. Throws InvalidArgument if rows x sequence is 0 or too large for any memory;
/// so does the function below.
TokenBatch training_batch(const TokenRange& data, std::uint64_t seed, std::int64_t step,
                          std::int64_t first_row, std::int64_t rows, std::int64_t sequence);

/// Validation batch `index` of `count`. Its windows are spread evenly over `data`, the same for every seed
/// and step.
TokenBatch validation_batch(const TokenRange& data, std::int64_t index, std::int64_t count, std::int64_t rows,
                            std::int64_t sequence);

}  // namespace flashoptim::trainer
