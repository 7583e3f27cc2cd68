// summary.json: what a run came to, for programs. Never measures anything.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "flashoptim/json.h"
#include "trainer/progress.h"
#include "trainer/train_options.h"

namespace flashoptim::trainer {

/// One finished run, with its options.
struct FinishedRun {
    TrainOptions options;
    TrainResult result;
};

/// {"runs": [...]} with one object per run: optimizer, format, master_bits, gradient_release, clip_norm,
/// seed, parameters, bytes_per_parameter (weights, corrections, moments, scales, gradients, accumulators,
/// total, autocast_copies), peak_resident_bytes, checkpoint_bytes, validation_loss, optimizer_step_seconds,
/// step_seconds, and the run's shape (model, steps, batch_size, sequence_length, accumulation, bad_elements,
/// stopped). What was not measured is null.
std::string summary_json(std::span<const FinishedRun> runs);

/// The first run's object in a summary.json. Nothing if the file is missing, unreadable or no summary.
std::optional<checkpoint::JsonValue> first_run_in(const std::filesystem::path& file);

}  // namespace flashoptim::trainer
