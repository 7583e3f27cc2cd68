// Ownership in the folder of a run or a comparison.
#include "trainer/owned_folder.h"

#include <unistd.h>

#include <algorithm>
#include <climits>
#include <system_error>
#include <utility>

#include "flashoptim/error.h"
#include "flashoptim/system/atomic_path.h"
#include "flashoptim/system/file_io.h"
#include "flashoptim/system/message.h"
#include "flashoptim/system/save_folder.h"
#include "trainer/run_replacement.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;
using checkpoint::path_label;

bool is_checkpoint(const std::string& name) { return name.starts_with(std::string(kCheckpointsName) + "/"); }

// The longest path that the system takes, and the most that the names in a run's folder add to the folder's
// path (a checkpoint that is moved aside). A comparison also adds the name of a run.
constexpr std::size_t kLongestPath = PATH_MAX - 1, kLongestName = 192, kLongestRunName = 64;

void require_short(const fs::path& out, RunKind kind) {
    std::error_code error;
    const std::size_t length = checkpoint::real_path(out, error).native().size();
    const std::size_t most = kLongestPath - kLongestName - (kind == RunKind::kTrain ? 0 : kLongestRunName);
    if (error || length <= most) return;
    throw InvalidArgument(path_label(out) + " is " + std::to_string(length) +
                          " bytes long with the folders above it, and the names of a run leave room for " +
                          std::to_string(most) + "; give a shorter --out");
}

const char* described(fs::file_type type) {
    switch (type) {
        case fs::file_type::directory:
            return "a folder";
        case fs::file_type::symlink:
            return "a link";
        case fs::file_type::regular:
            return "a file";
        default:
            return "neither file nor folder";
    }
}

}  // namespace

OwnedFolder::OwnedFolder(fs::path out, RunKind kind, Notice notice)
    : out_(std::move(out)), notice_(std::move(notice)), lock_(out_) {
    require_short(out_, kind);
    if (!lock_.is_exclusive()) {
        notice_(path_label(out_) +
                " is on a file system without locks; see to it yourself that no other run writes there");
    }
    manifest_ = read_manifest(out_);
    if (!manifest_) manifest_ = adopt_run(out_);
    if (!manifest_) return;
    if (manifest_->kind != kind) {
        throw InvalidArgument(path_label(out_) +
                              (kind == RunKind::kTrain ? " holds a comparison" : " holds a run") +
                              "; give another --out");
    }
    // A save deletes the leftovers of a killed save of the same file. But not every file is saved again.
    checkpoint::remove_leftovers(out_ / kManifestName);
    for (const std::string& name : manifest_->owned) checkpoint::remove_leftovers(out_ / name);
    settle();
}

OwnedFolder::~OwnedFolder() {
    if (!has_begun_) return;
    try {
        settle();
        if (!is_anything_own()) {
            ::unlink((out_ / kManifestName).c_str());
            lock_.release();
        } else {
            write();
        }
    } catch (const std::exception&) {
        // The next command that opens the folder will do it.
    }
}

bool OwnedFolder::has_own(const std::string& name) const {
    std::error_code ignored;
    const auto status = fs::symlink_status(out_ / name, ignored);
    return manifest_ && manifest_->owned.contains(name) &&
           (is_checkpoint(name) ? fs::is_directory(status) : fs::is_regular_file(status));
}

void OwnedFolder::require_free(const std::string& name) const {
    std::error_code ignored;
    const auto status = fs::symlink_status(out_ / name, ignored);
    if (!fs::exists(status) || has_own(name)) return;
    if (is_checkpoint(name) && checkpoint::is_vacant(out_ / name))
        return;  // an empty folder is treated as missing
    throw IoError(path_label(out_ / name) + " is in the way: it is " + described(status.type()) +
                  " that is not of a run here; move it elsewhere or give another --out");
}

void OwnedFolder::begin(RunManifest manifest) {
    lock_.keep();
    manifest_ = std::move(manifest);
    has_begun_ = true;
    if (manifest_->replaced) {
        set_aside(out_, *manifest_);
    } else {
        write_manifest(out_, *manifest_);
    }
}

void OwnedFolder::finish_replacing() {
    if (!is_replacing()) return;
    remove_replaced(out_, *manifest_, notice_);
    is_changed_ = false;
}

void OwnedFolder::add(const std::string& name) {
    if (!manifest_->owned.insert(name).second) return;
    is_changed_ = true;
    write();
}

void OwnedFolder::drop(const std::string& name) {
    is_changed_ = manifest_->owned.erase(name) > 0 || is_changed_;
}

void OwnedFolder::write() {
    if (!is_changed_) return;
    write_manifest(out_, *manifest_);
    is_changed_ = false;
}

// Completes a replacement, forwards or backwards, depending on how far the new run came.
void OwnedFolder::settle() {
    if (!is_replacing()) return;
    if (is_new_there()) {
        finish_replacing();
        return;
    }
    manifest_ = put_back(out_, *manifest_, notice_);
    is_changed_ = false;
    notice_(path_label(out_) +
            " is again what it was: the run that was to replace it ended before its first " +
            (manifest_->kind == RunKind::kTrain ? "checkpoint" : "run was there"));
}

bool OwnedFolder::is_new_there() const {
    if (manifest_->kind == RunKind::kTrain || manifest_->replaced->stage != Stage::kPending)
        return is_new_run_there(out_, *manifest_);
    const auto& members = manifest_->replaced->members;
    return std::any_of(members.begin(), members.end(), [this](const auto& member) {
        return identity_of_run(out_ / member.first) != member.second;
    });
}

bool OwnedFolder::is_anything_own() const {
    return std::any_of(manifest_->owned.begin(), manifest_->owned.end(),
                       [this](const std::string& name) { return has_own(name); });
}

std::string identity_of_run(const fs::path& folder) {
    try {
        auto manifest = read_manifest(folder);
        if (!manifest) manifest = adopt_run(folder);
        if (!manifest) return {};
        const auto& replaced = manifest->replaced;
        const bool is_old = replaced && !is_new_run_there(folder, *manifest);
        return is_old ? replaced->run : manifest->run;
    } catch (const Error&) {
        return {};
    }
}

}  // namespace flashoptim::trainer
