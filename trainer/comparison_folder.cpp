// Decides who may write in the folder of a comparison.
#include "trainer/comparison_folder.h"

#include <utility>

#include "flashoptim/error.h"
#include "flashoptim/system/file_io.h"
#include "flashoptim/system/message.h"
#include "trainer/run_folder.h"
#include "trainer/summary.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;
using checkpoint::path_label;

bool is_complete(const fs::path& run) {
    const auto summary = first_run_in(run / kSummaryName);
    const auto* stopped = summary ? summary->find("stopped") : nullptr;
    const auto* was_stopped = stopped != nullptr ? stopped->as<bool>() : nullptr;
    return was_stopped != nullptr && !*was_stopped;
}

// The runs that an earlier comparison has left.
std::string found_in(const fs::path& out, const std::vector<std::string>& runs) {
    std::string complete, unfinished;
    for (const std::string& run : runs) {
        if (identity_of_run(out / run).empty()) continue;
        std::string& list = is_complete(out / run) ? complete : unfinished;
        list += (list.empty() ? "" : ", ") + run;
    }
    return (complete.empty() ? "" : "; complete: " + complete) +
           (unfinished.empty() ? "" : "; not finished: " + unfinished);
}

}  // namespace

ComparisonFolder::ComparisonFolder(const fs::path& out, const std::vector<std::string>& runs,
                                   std::int64_t steps, bool overwrite, const Notice& notice)
    : folder_(out, RunKind::kCompare, notice) {
    const Names own = {"comparison.png", "model-bf16.json", "model-fp32.json", std::string(kSummaryName)};
    for (const std::string& name : own) folder_.require_free(name);
    for (const std::string& run : runs) {
        if (!checkpoint::is_taken(out / run)) continue;
        const RunFolder folder(out / run, notice);  // no other process trains there
        folder.require_permission({}, steps, /*overwrite=*/true);
    }
    const std::string found = found_in(out, runs);
    if (!overwrite && (!found.empty() || folder_.has_own(std::string(kSummaryName)))) {
        throw InvalidArgument(path_label(out) + " holds a comparison already" + found +
                              "; replace it by --overwrite or give another --out");
    }
    RunManifest manifest = new_manifest(RunKind::kCompare);
    manifest.owned = own;
    if (const auto& before = folder_.manifest()) {
        ReplacedRun replaced;
        replaced.run = before->run;
        replaced.owned = before->owned;
        for (const std::string& name : own) {
            if (folder_.has_own(name)) replaced.moved.insert(name);
        }
        for (const std::string& run : runs) replaced.members[run] = identity_of_run(out / run);
        if (!replaced.moved.empty()) manifest.replaced = std::move(replaced);
    }
    folder_.begin(std::move(manifest));
}

void ComparisonFolder::end() {
    folder_.finish_replacing();
    folder_.write();
}

}  // namespace flashoptim::trainer
