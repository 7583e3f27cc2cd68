// The folder of a run, from its lock to its end.
#include "trainer/run_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "flashoptim/checkpoint.h"
#include "flashoptim/checkpoint_folder.h"
#include "flashoptim/error.h"
#include "flashoptim/system/atomic_path.h"
#include "flashoptim/system/file_io.h"
#include "flashoptim/system/message.h"
#include "trainer/data/file_list.h"
#include "trainer/metrics.h"
#include "trainer/run_replacement.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;
using checkpoint::path_label;

bool is_step(const std::string& name) { return name.starts_with(std::string(kCheckpointsName) + "/"); }

// Renames a damaged checkpoint, so that the user can still recover data from it.
void rename_damaged(const fs::path& checkpoint, const std::string& fault, const Notice& notice) {
    const std::string first = checkpoint.string() + ".damaged";
    fs::path free_name = first;
    for (int number = 2; checkpoint::is_taken(free_name); ++number) {
        free_name = std::string(first).append("-").append(std::to_string(number));
    }
    if (::rename(checkpoint.c_str(), free_name.c_str()) != 0)
        checkpoint::throw_io_error("move", checkpoint, errno);
    if (const auto parent = checkpoint::open_existing(checkpoint.parent_path()))
        checkpoint::sync(parent, checkpoint.parent_path());
    notice("moved to " + path_label(free_name) + ": " + fault);
}

// Empty if the checkpoint can be removed. If it is damaged, so that its own files are unknown, returns the
// fault. Throws IoError if it is intact and has foreign files.
std::optional<std::string> fault_of_unreadable(const fs::path& checkpoint) {
    try {
        checkpoint::check_removable(checkpoint);
        return std::nullopt;
    } catch (const IoError&) {
        auto fault = fault_of(checkpoint);
        if (!fault) throw;
        return fault;
    }
}

}  // namespace

void require_apart(const fs::path& data, const fs::path& out) {
    if (data.empty() || out.empty()) return;
    if (would_be_listed(data, out)) {
        throw InvalidArgument("the folder of the run, " + path_label(out) + ", lies in the data folder " +
                              path_label(data) +
                              ", so the next run would train on what it holds; give another --out");
    }
    std::error_code ignored;
    const fs::path real = checkpoint::real_path(data, ignored);
    const fs::path way = real.lexically_relative(checkpoint::real_path(out, ignored));
    const fs::path first = way.empty() ? way : *way.begin();
    if (first == kMetricsName || first == kSummaryName || first == kCheckpointsName) {
        throw InvalidArgument("the data " + path_label(data) + " is " + path_label(real) +
                              ", a name that the run needs; give a copy of it, or another --out");
    }
}

RunFolder::RunFolder(const fs::path& out, const Notice& notice) : folder_(out, RunKind::kTrain, notice) {}

RunFolder::~RunFolder() {
    // If a run failed before its first row, the same command can be repeated in this folder.
    if (is_new_ && !folder_.is_replacing() && folder_.has_own(std::string(kMetricsName)) &&
        !has_rows(metrics()))
        ::unlink(metrics().c_str());
}

bool RunFolder::is_checkpoint_here(const fs::path& checkpoint) const {
    const auto found = list_checkpoints(folder_.path() / kCheckpointsName);
    return !checkpoint.empty() && std::any_of(found.begin(), found.end(), [&](const SavedStep& here) {
        std::error_code error;
        return fs::equivalent(here.folder, checkpoint, error);
    });
}

void RunFolder::require_permission(const fs::path& resumed_from, std::int64_t last_step,
                                   bool overwrite) const {
    const auto& manifest = folder_.manifest();
    const bool continues = is_checkpoint_here(resumed_from);
    if (!overwrite && !continues && manifest &&
        std::any_of(manifest->owned.begin(), manifest->owned.end(),
                    [this](const std::string& name) { return folder_.has_own(name); })) {
        throw InvalidArgument(
            path_label(folder_.path()) +
            " holds a run already; go on with it by --resume, replace it by --overwrite, or give "
            "another --out");
    }
    require_free_names(continues ? last_step : 0, last_step);
    // What cannot be read would be replaced by a file that lacks its rows.
    if (continues && checkpoint::is_taken(metrics()) && ::access(metrics().c_str(), R_OK) != 0)
        checkpoint::throw_io_error("read", metrics(), errno);
}

// The existing files of the run that are later than `step`; all of them if `step` is 0.
Names RunFolder::own_things_after(std::int64_t step) const {
    Names names;
    if (!folder_.manifest()) return names;
    for (const std::string& name : folder_.manifest()->owned) {
        const bool is_later = !is_step(name) || checkpoint_step(fs::path(name).filename().string()) > step;
        if (is_later && folder_.has_own(name) && !checkpoint::is_vacant(folder_.path() / name))
            names.insert(name);
    }
    return names;
}

void RunFolder::require_free_names(std::int64_t step, std::int64_t last_step) const {
    for (const std::string_view name : {kMetricsName, kSummaryName}) folder_.require_free(std::string(name));
    const fs::path checkpoints = folder_.path() / kCheckpointsName;
    std::error_code ignored;
    if (checkpoint::is_taken(checkpoints) && !fs::is_directory(checkpoints, ignored)) {
        throw IoError(path_label(checkpoints) +
                      " is in the way: it is no folder; move it elsewhere or give another --out");
    }
    // Check now. Otherwise only the first checkpoint would fail, and the training up to it would be lost.
    if (fs::is_directory(checkpoints, ignored) && ::access(checkpoints.c_str(), W_OK | X_OK) != 0)
        checkpoint::throw_io_error("write", checkpoints, errno);
    // The run may be stopped after any step, and then saves a checkpoint of that step.
    std::error_code error;
    for (fs::directory_iterator entry(checkpoints, error), end; !error && entry != end;
         entry.increment(error)) {
        const std::int64_t taken = checkpoint_step(entry->path().filename().string());
        if (taken > step && taken <= last_step) folder_.require_free(checkpoint_name(taken));
    }
}

// Refuses to replace what must stay. Renames damaged checkpoints. Returns the names that must be moved aside.
Names RunFolder::make_room(const Names& later, bool continues, bool overwrite) const {
    std::vector<std::pair<std::string, std::string>> damaged;
    for (auto name = later.rbegin(); name != later.rend(); ++name) {
        if (!is_step(*name)) continue;
        const fs::path folder = folder_.path() / *name;
        if (overwrite) {
            auto fault = fault_of_unreadable(folder);
            if (fault) damaged.emplace_back(*name, std::move(*fault));
        } else if (continues) {
            auto fault = fault_of(folder);
            if (!fault) {
                throw InvalidArgument(
                    path_label(folder_.path()) + " holds a checkpoint of step " +
                    std::to_string(checkpoint_step(folder.filename().string())) +
                    ", later than the one to resume; resume that, replace it by --overwrite, or "
                    "give another --out");
            }
            damaged.emplace_back(*name, std::move(*fault));
        }
    }
    Names rest = later;
    for (const auto& [name, fault] : damaged) {
        rename_damaged(folder_.path() / name, fault, folder_.notice());
        rest.erase(name);
    }
    return rest;
}

bool RunFolder::begin(const fs::path& resumed_from, std::int64_t step, std::int64_t last_step,
                      bool overwrite) {
    require_permission(resumed_from, last_step, overwrite);
    const bool continues = is_checkpoint_here(resumed_from);
    require_free_names(continues ? step : 0, last_step);
    const Names found = own_things_after(continues ? step : 0);
    const Names later = make_room(found, continues, overwrite);

    RunManifest manifest = new_manifest(RunKind::kTrain);
    const auto& before = folder_.manifest();
    if (continues && before) manifest = *before;
    for (const std::string_view name : {kMetricsName, kSummaryName}) manifest.owned.emplace(name);
    for (const std::string& name : found) {
        if (is_step(name)) manifest.owned.erase(name);
    }
    const bool goes_back = std::any_of(later.begin(), later.end(), is_step);
    if (before && !later.empty() && (!continues || (overwrite && goes_back))) {
        ReplacedRun replaced;
        replaced.run = before->run;
        replaced.owned = before->owned;
        replaced.moved = later;
        replaced.from = step;
        manifest.replaced = std::move(replaced);
    }
    folder_.begin(std::move(manifest));
    is_new_ = !continues;
    return continues;
}

fs::path RunFolder::metrics() const { return folder_.path() / kMetricsName; }

fs::path RunFolder::metrics_so_far() const {
    const std::string name(kMetricsName);
    const auto& replaced = folder_.manifest()->replaced;
    return replaced && replaced->moved.contains(name) ? aside_path(folder_.path(), *replaced, name)
                                                      : metrics();
}

void RunFolder::begin_checkpoint(std::int64_t step) { folder_.add(checkpoint_name(step)); }

void RunFolder::end_checkpoint() { folder_.finish_replacing(); }

void RunFolder::remove_old_checkpoints(std::int64_t kept) {
    std::vector<SavedStep> own;
    for (const SavedStep& saved : list_checkpoints(folder_.path() / kCheckpointsName)) {
        if (folder_.has_own(checkpoint_name(saved.step)) && !checkpoint::is_vacant(saved.folder))
            own.push_back(saved);
    }
    const std::size_t surplus = own.size() - std::min(own.size(), static_cast<std::size_t>(kept));
    for (std::size_t index = 0; index < surplus; ++index) {
        try {
            checkpoint::remove(own[index].folder);
            folder_.drop(checkpoint_name(own[index].step));
        } catch (const IoError& error) {
            folder_.notice()(error.what());
        }
    }
}

void RunFolder::end() {
    folder_.finish_replacing();
    folder_.write();
    is_new_ = false;
}

}  // namespace flashoptim::trainer
