// Finds checkpoints in the folder of a run.
#include "trainer/checkpoint_list.h"

#include <algorithm>
#include <system_error>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "flashoptim/system/file_io.h"
#include "flashoptim/system/message.h"
#include "trainer/run_lock.h"
#include "trainer/run_replacement.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

std::optional<RunManifest> manifest_if_readable(const fs::path& out) {
    try {
        return read_manifest(out);
    } catch (const Error&) {
        return std::nullopt;  // a reader needs no manifest; only a writer must know what is whose
    }
}

bool is_folder_of_run(const fs::path& path) {
    return checkpoint::is_taken(path / kManifestName) || checkpoint::is_taken(path / kMetricsName) ||
           checkpoint::is_taken(path / kCheckpointsName) || checkpoint::is_taken(path / kLockName);
}

// All checkpoints in the run's folder from which it may be resumed, oldest first.
std::vector<SavedStep> candidates_in(const fs::path& out) {
    const fs::path folder = out / kCheckpointsName;
    std::vector<SavedStep> found = list_checkpoints(folder);
    const auto manifest = manifest_if_readable(out);
    if (manifest && manifest->replaced && !is_new_run_there(out, *manifest)) {
        const auto aside = list_checkpoints(aside_folder(folder, *manifest->replaced));
        found.insert(found.end(), aside.begin(), aside.end());
        std::stable_sort(found.begin(), found.end(), [](const SavedStep& left, const SavedStep& right) {
            return left.step < right.step;
        });
    }
    return found;
}

}  // namespace

fs::path checkpoint_folder(const fs::path& out, std::int64_t step) { return out / checkpoint_name(step); }

std::vector<SavedStep> list_checkpoints(const fs::path& folder) {
    std::vector<SavedStep> found;
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
        std::error_code ignored;
        if (const std::int64_t step = checkpoint_step(entry->path().filename().string());
            step > 0 && fs::is_directory(entry->path(), ignored)) {
            found.push_back({step, entry->path()});
        }
    }
    // A missing path, or one that is not a folder, has no checkpoints. Any other error is reported.
    if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory &&
        error != std::errc::too_many_symbolic_link_levels) {
        checkpoint::throw_io_error("read", folder, error.value());
    }
    std::sort(found.begin(), found.end(),
              [](const SavedStep& left, const SavedStep& right) { return left.step < right.step; });
    return found;
}

std::optional<std::string> fault_of(const fs::path& checkpoint) {
    try {
        const auto saved = checkpoint::Checkpoint::open(checkpoint);
        for (const std::string& name : saved.file_names()) {
            [[maybe_unused]] const auto compared_with_its_checksum = saved.file(name);
        }
        return std::nullopt;
    } catch (const Error& error) {
        return error.what();
    }
}

fs::path find_checkpoint(const fs::path& path, const Notice& notice) {
    // A run that is still active may delete a checkpoint during the check, once a newer one is complete.
    for (int tries_left = 10;; --tries_left) {
        std::vector<std::string> faults;
        bool is_any_gone = false;
        const auto candidates = candidates_in(path);
        for (auto candidate = candidates.rbegin(); candidate != candidates.rend(); ++candidate) {
            const auto fault = fault_of(candidate->folder);
            if (!fault) {
                for (const std::string& line : faults) notice("passed over: " + line);
                return candidate->folder;
            }
            faults.push_back(*fault);
            is_any_gone = is_any_gone || !checkpoint::is_taken(candidate->folder);
        }
        if (is_any_gone && tries_left > 0) continue;
        if (!faults.empty())
            throw IoError(checkpoint::path_label(path) + " holds no complete checkpoint: " + faults.front());
        const bool is_nothing = checkpoint::is_vacant(path) && fault_of(path);
        if (checkpoint::exists(path) && !is_nothing && !is_folder_of_run(path)) return path;
        throw IoError(checkpoint::path_label(path) +
                      " holds no checkpoint; give a checkpoint or the out folder of a run that wrote one");
    }
}

bool is_new_run_there(const fs::path& out, const RunManifest& manifest) {
    if (manifest.replaced->stage != Stage::kPending) return manifest.replaced->stage == Stage::kLeaving;
    const auto saved = list_checkpoints(out / kCheckpointsName);
    return std::any_of(saved.rbegin(), saved.rend(), [&](const SavedStep& checkpoint) {
        return checkpoint.step > manifest.replaced->from &&
               manifest.owned.contains(checkpoint_name(checkpoint.step)) && !fault_of(checkpoint.folder);
    });
}

}  // namespace flashoptim::trainer
