// What a run tells whoever watches it, and what it returns. Plain data: no torch header, no printing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace flashoptim::trainer {

/// Bytes that a run holds for its parameters, by kind, as counted in the tensors themselves.
struct MemoryByKind {
    std::int64_t parameters = 0;  ///< elements
    std::int64_t weights = 0;
    std::int64_t corrections = 0;  ///< of 16-bit weights
    std::int64_t moments = 0;
    std::int64_t scales = 0;        ///< of quantised moments
    std::int64_t gradients = 0;     ///< at the moment of the step, without accumulators
    std::int64_t accumulators = 0;  ///< fp32 sums of 16-bit gradients over micro-batches
    /// The 16-bit copies of fp32 weights that autocast holds between forward and backward. Not part of
    /// total(): the 16 bytes per parameter of mixed-precision AdamW are commonly counted without them.
    std::int64_t autocast_copies = 0;

    std::int64_t total() const { return weights + corrections + moments + scales + gradients + accumulators; }
    double per_parameter(std::int64_t bytes) const {
        return parameters == 0 ? 0.0 : static_cast<double>(bytes) / static_cast<double>(parameters);
    }
};

/// Known before the first step.
struct RunInfo {
    std::int64_t parameters = 0;
    std::int64_t vocabulary_size = 0;
    std::int64_t training_tokens = 0;
    std::int64_t validation_tokens = 0;
    std::int64_t first_step = 1;  ///< 1, or the step after the checkpoint's
    std::int64_t total_steps = 0;
    int threads = 1;
    double clip_norm = 0.0;              ///< of all gradients; 0: they are not clipped
    std::filesystem::path resumed_from;  ///< empty: a new run
};

/// One step; a row of metrics.csv.
struct StepRecord {
    std::int64_t step = 0;                  ///< counted from 1
    double loss = 0.0;                      ///< mean over the step's tokens, before the update
    std::optional<double> validation_loss;  ///< after the update, in steps that are evaluated
    double learning_rate = 0.0;
    std::optional<double> gradient_norm;  ///< before clipping; none with gradient release
    std::int64_t tokens = 0;              ///< seen since the first step of the run
    double tokens_per_second = 0.0;
    double seconds = 0.0;  ///< data, forward, backward and optimizer; not evaluation or checkpoint
    /// The optimizer alone, also where gradient release runs it inside backward; none of that on a GPU, which
    /// is only told to step there and is not waited for.
    std::optional<double> optimizer_seconds;
    std::int64_t resident_bytes = 0;
};

/// A complete checkpoint.
struct CheckpointRecord {
    std::int64_t step = 0;
    std::filesystem::path folder;
    std::int64_t bytes = 0;
};

/// Receives what happens. Called on the thread that trains, between steps; an exception ends the run and
/// reaches the caller.
class TrainObserver {
public:
    virtual ~TrainObserver() = default;
    virtual void on_start(const RunInfo& /*info*/) {}
    virtual void on_step(const StepRecord& /*record*/) {}
    virtual void on_checkpoint(const CheckpointRecord& /*record*/) {}
    /// Something that the user should know and that is no error: one line.
    virtual void on_notice(const std::string& /*line*/) {}
    /// Asked after each step: true ends the run there, with its last checkpoint, as if it had been the last
    /// step.
    virtual bool stop_requested() { return false; }
};

/// What a run came to.
struct TrainResult {
    std::int64_t last_step = 0;
    bool stopped = false;                   ///< on the observer's request, before the last step
    std::optional<double> loss;             ///< of the last step
    std::optional<double> validation_loss;  ///< after the last step
    std::int64_t bad_elements = 0;  ///< gradient elements that were skipped because they were not finite
    MemoryByKind memory;
    std::int64_t peak_resident_bytes = 0;  ///< of the process, as the operating system measured it
    std::int64_t peak_device_bytes = 0;    ///< of tensors in memory of a GPU; 0: the run was on the CPU
    std::int64_t checkpoint_bytes = 0;     ///< of the last checkpoint; 0: none was written
    std::filesystem::path checkpoint;      ///< the last one
    bool is_kept = false;                  ///< whether metrics and summary are in the folder of the run
    std::optional<double> step_seconds;    ///< median
    std::optional<double> optimizer_step_seconds;  ///< median; none where none was measured
};

}  // namespace flashoptim::trainer
