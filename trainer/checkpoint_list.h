// The checkpoints in the folder of a run: where they lie, which are complete, which one to go on from.
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

/// Receives what a user should know and what is no error: one line.
using Notice = std::function<void(const std::string&)>;

struct SavedStep {
    std::int64_t step = 0;
    std::filesystem::path folder;
};

/// Where the checkpoint of `step` lies in a run's folder.
std::filesystem::path checkpoint_folder(const std::filesystem::path& out, std::int64_t step);

/// All folders in `folder` that have the name of a checkpoint, oldest first, whatever is in them.
std::vector<SavedStep> list_checkpoints(const std::filesystem::path& folder);

/// Why a checkpoint cannot be used; nothing if it is complete. Reads all of it.
std::optional<std::string> fault_of(const std::filesystem::path& checkpoint);

/// The checkpoint that `path` means: itself, or the newest complete one of the run in folder `path`, also
/// where an --overwrite that was killed has moved the run aside. `notice` hears of newer ones that are passed
/// over, and why. Throws IoError if there is none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path, const Notice& notice);

/// Whether the run that replaces another one has come to stay: it has a checkpoint of its own by now, or has
/// ended well.
bool is_new_run_there(const std::filesystem::path& out, const RunManifest& manifest);

}  // namespace flashoptim::trainer
