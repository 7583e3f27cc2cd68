// What lies in the `out` folder of a run, and who may replace it. Never looks into a checkpoint and needs no torch header.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace flashoptim::trainer {

/// Where the checkpoint of `step` lies in a run's folder.
std::filesystem::path checkpoint_folder(const std::filesystem::path& out, std::int64_t step);

/// The checkpoint that `path` means: itself, or the newest one of the run in folder `path`. Throws IoError if there is none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);

/// Step of the newest checkpoint in a run's folder, 0 if there is none.
std::int64_t newest_checkpoint_step(const std::filesystem::path& out);

/// Removes all but the newest `kept` checkpoints of a run. Returns why others are still there: one in which somebody keeps other
/// files stays, and a run does not end for it.
std::vector<std::string> remove_old_checkpoints(const std::filesystem::path& out, std::int64_t kept);

/// Whether a run left something in `out` that another one would replace: metrics.csv, summary.json or a checkpoint.
bool holds_run(const std::filesystem::path& out);

/// Makes `out` ready for the steps after `step`, which go on from `resumed_from` (empty: from nothing). Returns whether that is a
/// checkpoint of the very run in `out`, by whatever path it was named; then only what follows `step` has to go, else all that a run
/// left. Throws InvalidArgument if something has to go and `overwrite` does not allow it; IoError.
bool claim_run_folder(const std::filesystem::path& out, const std::filesystem::path& resumed_from,
                      std::int64_t step, bool overwrite);

}  // namespace flashoptim::trainer
