// Moving a run aside, back, and away.
#include "trainer/run_replacement.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "flashoptim/checkpoint.h"
#include "flashoptim/error.h"
#include "system/atomic_path.h"
#include "system/file_io.h"
#include "system/message.h"
#include "system/save_folder.h"

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

// Removes what a run owned. Somebody's other files in it stay, and so it does.
void remove_owned(const fs::path& path, const std::string& name) {
    if (is_checkpoint(name)) {
        if (::rmdir(path.c_str()) != 0 && errno != ENOENT) checkpoint::remove(path);
    } else {
        remove_file(path);
    }
}

// Removes the folder in which something lay aside. Stays where it holds something else; returns whether it is
// gone.
bool remove_aside(const fs::path& out, const ReplacedRun& replaced, const fs::path& folder) {
    for (const std::string& name : replaced.moved) {
        if (const fs::path aside = aside_path(out, replaced, name); aside.parent_path() == folder)
            checkpoint::remove_leftovers(aside);  // of a removal that was killed
    }
    return ::rmdir(folder.c_str()) == 0 || errno == ENOENT;
}

// The folders in which something lies aside, those below others last.
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

// In the folder where it lay: `checkpoints` may be a link to another disk, and one step of renaming does not
// go there.
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
    // Before a checkpoint of the old run has its name again, under which it would be taken for one of the new
    // run.
    decide(out, manifest, Stage::kReturning);
    const ReplacedRun& replaced = *manifest.replaced;
    for (const std::string& name : manifest.owned) {
        if (replaced.owned.contains(name)) continue;  // the old one's, or replaced by it below
        try {
            remove_owned(out / name, name);
        } catch (const IoError& error) {
            notice(error.what());
        }
    }
    for (const std::string& name : replaced.moved) {
        const fs::path aside = aside_path(out, replaced, name);
        if (!checkpoint::is_taken(aside)) continue;  // it was not moved, or is back
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
        remove_aside(out, replaced, folder);  // of what else it may hold `notice` has heard
        sync_folder(folder.parent_path());
    }
    manifest.replaced.reset();
    write_manifest(out, manifest);
}

}  // namespace flashoptim::trainer
