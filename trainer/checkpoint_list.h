// The checkpoints in the folder of a run: their paths, which are complete, and which one to resume from.
// Changes nothing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trainer/run_manifest.h"

namespace flashoptim::trainer {

/// Receives a notice for the user that is not an error: one line.
using Notice = std::function<void(const std::string&)>;

struct SavedStep {
    std::int64_t step = 0;
    std::filesystem::path folder;
};

/// The path of the checkpoint of `step` in the folder of a run.
std::filesystem::path checkpoint_folder(const std::filesystem::path& out, std::int64_t step);

/// All folders in `folder` with the name of a checkpoint, oldest first. Does not read their content.
std::vector<SavedStep> list_checkpoints(const std::filesystem::path& folder);

/// Why a checkpoint cannot be used. Empty if it is complete. Reads all of it.
std::optional<std::string> fault_of(const std::filesystem::path& checkpoint);

/// The checkpoint at `path`: `path` itself, or the newest complete checkpoint of the run in folder `path`.
/// Finds the run even if an --overwrite that was killed has moved it aside. `notice` receives a line for each
/// newer checkpoint that is skipped, with the reason. Throws IoError if there is none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path, const Notice& notice);

/// Whether a run that replaces another one has succeeded: it has written a checkpoint or has ended well.
bool is_new_run_there(const std::filesystem::path& out, const RunManifest& manifest);

}  // namespace flashoptim::trainer
