// The manifest in the folder of a run or a comparison: the names of the files that it owns. Nothing else is
// ever moved, replaced or removed. Never reads a checkpoint.
//
//     {"kind": "train", "layout": 1, "run": "<32 digits>",
//      "owns": ["checkpoints/step-00000100", "metrics.csv", "summary.json"],
//      "replaces": {...}}    // only while what --overwrite replaces is still there, see run_replacement.h
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace flashoptim::trainer {

inline constexpr std::string_view kManifestName = ".flashoptim-run";
inline constexpr std::string_view kMetricsName = "metrics.csv";
inline constexpr std::string_view kSummaryName = "summary.json";
inline constexpr std::string_view kCheckpointsName = "checkpoints";

/// "checkpoints/step-00000100".
std::string checkpoint_name(std::int64_t step);
/// The step of a checkpoint by the name of its folder ("step-00000100"), 0 for any other name.
std::int64_t checkpoint_step(std::string_view folder_name);

enum class RunKind : std::uint8_t { kTrain, kCompare };

using Names = std::set<std::string>;

/// The fate of a run that was moved aside. Once decided it does not change, even if a process is killed.
enum class Stage : std::uint8_t {
    kPending,    ///< the new run has not succeeded yet
    kLeaving,    ///< it has succeeded: the moved files are being deleted
    kReturning,  ///< it has failed: the moved files are being moved back
};

/// A run that was moved aside to be replaced.
struct ReplacedRun {
    std::string run;
    Names owned;            ///< everything that it owned, including what was not moved
    Names moved;            ///< what was moved to the folder beside the run
    std::int64_t from = 0;  ///< the new run continues from this step: a later checkpoint is its first
    Stage stage = Stage::kPending;
    std::map<std::string, std::string>
        members;  ///< of a comparison: its runs and their identities when it was replaced
};

struct RunManifest {
    RunKind kind = RunKind::kTrain;
    std::string
        run;  ///< identifies the run, wherever its folder is moved; 32 zeros for one of an earlier version
    Names owned;
    std::optional<ReplacedRun> replaced;
};

/// The manifest of a new run.
RunManifest new_manifest(RunKind kind);

/// Reads the manifest in `folder`. Empty if there is none. Throws FormatError if it is damaged, foreign or of
/// a newer version; IoError.
std::optional<RunManifest> read_manifest(const std::filesystem::path& folder);

/// Makes a manifest for a run of an earlier version, which wrote none. Its files are recognised by their
/// content. Empty if there is no run.
std::optional<RunManifest> adopt_run(const std::filesystem::path& folder);

/// Replaces the manifest, durably. Throws IoError.
void write_manifest(const std::filesystem::path& folder, const RunManifest& manifest);

}  // namespace flashoptim::trainer
