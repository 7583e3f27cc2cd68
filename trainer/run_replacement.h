// How one run replaces another in the same folder, so that one of them is complete at every moment:
//
//     1. The manifest of the new run says what it replaces.
//     2. The old files are moved to a folder of their own beside the run, `.flashoptim-replaced-<old run>/`.
//     3. If the new run writes its first checkpoint or ends well, the manifest says so, and the old files are
//        deleted. If it fails before that, the manifest says so, the new files are deleted, and the old files
//        and the old manifest get their names back.
//
// Each step can be repeated after a kill in its middle. The caller holds the lock of the folder and decides
// whether to replace.
#pragma once

#include <filesystem>

#include "trainer/checkpoint_list.h"
#include "trainer/run_manifest.h"

namespace flashoptim::trainer {

/// Where a run that is replaced lies, beside what lay in `parent`.
std::filesystem::path aside_folder(const std::filesystem::path& parent, const ReplacedRun& replaced);

/// Where what was `out / name` lies now.
std::filesystem::path aside_path(const std::filesystem::path& out, const ReplacedRun& replaced,
                                 const std::string& name);

/// Writes `manifest`, whose `replaced` says what to move, and moves it. Throws IoError; `put_back` then makes
/// it undone.
void set_aside(const std::filesystem::path& out, const RunManifest& manifest);

/// Removes what the new run has made, puts the old run back under its names and returns its manifest, which
/// is written. `notice` hears of what could not be moved. Throws IoError.
RunManifest put_back(const std::filesystem::path& out, RunManifest manifest, const Notice& notice);

/// Removes what lies aside. `notice` hears of what could not be removed. `manifest` has no `replaced`
/// afterwards and is written. Throws IoError.
void remove_replaced(const std::filesystem::path& out, RunManifest& manifest, const Notice& notice);

}  // namespace flashoptim::trainer
