// Moves a run aside, moves it back, or deletes it.
#include "trainer/run_replacement.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "flashoptim/system/atomic_path.h"
#include "flashoptim/system/file_io.h"
#include "flashoptim/system/message.h"
#include "flashoptim/system/save_folder.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

void sync_folder(const fs::path& folder) {
    if (const auto opened = checkpoint::open_existing(folder)) checkpoint::sync(opened, folder);
}

bool is_checkpoint(const std::string& name) { return name.starts_with(std::string(kCheckpointsName) + "/"); }

void remove_file(const fs::path& file) {
    if (::unlink(file.c_str()) != 0 && errno != ENOENT) checkpoint::throw_io_error("remove", file, errno);
}

// Deletes a file or checkpoint of a run. A checkpoint with foreign files is kept.
void remove_owned(const fs::path& path, const std::string& name) {
    if (is_checkpoint(name)) {
        if (::rmdir(path.c_str()) != 0 && errno != ENOENT) checkpoint::remove(path);
    } else {
        remove_file(path);
    }
}

// Deletes a folder of moved files, unless it contains something else. Returns whether the folder is gone.
bool remove_aside(const fs::path& out, const ReplacedRun& replaced, const fs::path& folder) {
    for (const std::string& name : replaced.moved) {
        if (const fs::path aside = aside_path(out, replaced, name); aside.parent_path() == folder)
            checkpoint::remove_leftovers(aside);  // from a deletion that was killed
    }
    return ::rmdir(folder.c_str()) == 0 || errno == ENOENT;
}

// The folders that contain moved files, parents first.
std::set<fs::path> asides_of(const fs::path& out, const ReplacedRun& replaced) {
    std::set<fs::path> folders;
    for (const std::string& name : replaced.moved)
        folders.insert(aside_path(out, replaced, name).parent_path());
    return folders;
}

void decide(const fs::path& out, RunManifest& manifest, Stage stage) {
    if (manifest.replaced->stage == stage) return;
    manifest.replaced->stage = stage;
    write_manifest(out, manifest);
}

}  // namespace

fs::path aside_folder(const fs::path& parent, const ReplacedRun& replaced) {
    return parent / (".flashoptim-replaced-" + replaced.run);
}

// Where a file is moved to: a folder beside it. `checkpoints` may be a link to another disk, and rename()
// does not work across disks.
fs::path aside_path(const fs::path& out, const ReplacedRun& replaced, const std::string& name) {
    const fs::path place = out / name;
    return aside_folder(place.parent_path(), replaced) / place.filename();
}

void set_aside(const fs::path& out, const RunManifest& manifest) {
    const ReplacedRun& replaced = *manifest.replaced;
    write_manifest(out, manifest);
    for (const fs::path& folder : asides_of(out, replaced)) {
        if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST)
            checkpoint::throw_io_error("create", folder, errno);
        sync_folder(folder.parent_path());
    }
    for (const std::string& name : replaced.moved) {
        if (::rename((out / name).c_str(), aside_path(out, replaced, name).c_str()) != 0)
            checkpoint::throw_io_error("move", out / name, errno);
    }
    for (const fs::path& folder : asides_of(out, replaced)) {
        sync_folder(folder);
        sync_folder(folder.parent_path());
    }
}

RunManifest put_back(const fs::path& out, RunManifest manifest, const Notice& notice) {
    // Decide before a checkpoint of the old run gets its name back. Under that name it would be taken for a
    // checkpoint of the new run.
    decide(out, manifest, Stage::kReturning);
    const ReplacedRun& replaced = *manifest.replaced;
    for (const std::string& name : manifest.owned) {
        if (replaced.owned.contains(name)) continue;  // belongs to the old run, or is overwritten below
        try {
            remove_owned(out / name, name);
        } catch (const IoError& error) {
            notice(error.what());
        }
    }
    for (const std::string& name : replaced.moved) {
        const fs::path aside = aside_path(out, replaced, name);
        if (!checkpoint::is_taken(aside)) continue;  // it was not moved, or was moved back already
        if (is_checkpoint(name) && checkpoint::is_taken(out / name)) remove_owned(out / name, name);
        if (::rename(aside.c_str(), (out / name).c_str()) != 0)
            checkpoint::throw_io_error("move", aside, errno);
    }
    for (const fs::path& folder : asides_of(out, replaced)) {
        sync_folder(folder.parent_path());
        if (!remove_aside(out, replaced, folder)) {
            notice(checkpoint::path_label(folder) +
                   " stays: it holds what is not of the run that was set aside");
        }
    }
    RunManifest old;
    old.kind = manifest.kind;
    old.run = replaced.run;
    old.owned = replaced.owned;
    write_manifest(out, old);
    return old;
}

void remove_replaced(const fs::path& out, RunManifest& manifest, const Notice& notice) {
    decide(out, manifest, Stage::kLeaving);
    const ReplacedRun& replaced = *manifest.replaced;
    for (const std::string& name : replaced.moved) {
        try {
            remove_owned(aside_path(out, replaced, name), name);
        } catch (const IoError& error) {
            notice(error.what());
        }
    }
    for (const fs::path& folder : asides_of(out, replaced)) {
        remove_aside(out, replaced, folder);  // `notice` has reported any other files in it
        sync_folder(folder.parent_path());
    }
    manifest.replaced.reset();
    write_manifest(out, manifest);
}

}  // namespace flashoptim::trainer
