// The manifest in the folder of a run or a comparison: what there is its own, by name. Nothing else is ever
// moved, replaced or removed. Never looks into a checkpoint.
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

/// What becomes of a run that was moved aside. Once it is decided it stays decided, whoever is killed
/// meanwhile.
enum class Stage : std::uint8_t {
    kPending,    ///< the new run has to hold first
    kLeaving,    ///< it holds: what was moved is being removed
    kReturning,  ///< it has failed: what was moved is being put back
};

/// What was moved aside to be replaced.
struct ReplacedRun {
    std::string run;
    Names owned;            ///< all that was its own, also what was not moved
    Names moved;            ///< these lie in its folder aside
    std::int64_t from = 0;  ///< the new run goes on from this step: a later checkpoint is its first one
    Stage stage = Stage::kPending;
    std::map<std::string, std::string>
        members;  ///< of a comparison: its runs and what they were when it was replaced
};

struct RunManifest {
    RunKind kind = RunKind::kTrain;
    std::string
        run;  ///< identifies the run, wherever its folder is moved; 32 zeros for one of an earlier version
    Names owned;
    std::optional<ReplacedRun> replaced;
};

/// Of a run that begins.
RunManifest new_manifest(RunKind kind);

/// The manifest in `folder`, nothing if there is none. Throws FormatError for one that is damaged, foreign or
/// of a newer version; IoError.
std::optional<RunManifest> read_manifest(const std::filesystem::path& folder);

/// The manifest that a run of an earlier version would have, which wrote none: what it left is known by its
/// content. Nothing if there is nothing of a run.
std::optional<RunManifest> adopt_run(const std::filesystem::path& folder);

/// Replaces the manifest, durably. Throws IoError.
void write_manifest(const std::filesystem::path& folder, const RunManifest& manifest);

}  // namespace flashoptim::trainer
