// A folder that belongs to one run or one comparison at a time. It is locked, has a manifest of the files
// that the run owns, and completes what a killed process has left unfinished. Does not know what a run does
// in the folder.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "trainer/checkpoint_list.h"
#include "trainer/run_lock.h"
#include "trainer/run_manifest.h"

namespace flashoptim::trainer {

class OwnedFolder {
public:
    /// Locks `out` and completes an --overwrite that was killed: restores the old run, or deletes it if the
    /// new one has succeeded. Throws IoError (in use, cannot be written), InvalidArgument (the folder is of
    /// the other kind) and FormatError (the manifest).
    OwnedFolder(std::filesystem::path out, RunKind kind, Notice notice);
    OwnedFolder(const OwnedFolder&) = delete;
    OwnedFolder& operator=(const OwnedFolder&) = delete;
    /// Restores a run whose replacement has not succeeded. If nothing was written, the folder is as it was
    /// before.
    ~OwnedFolder();

    const std::filesystem::path& path() const { return out_; }
    const Notice& notice() const { return notice_; }

    /// What the run owns here: from the manifest, or by content if an earlier version wrote the run.
    const std::optional<RunManifest>& manifest() const { return manifest_; }
    /// Whether `name` exists with the type that a run gives it: a file, or a folder for a checkpoint.
    bool has_own(const std::string& name) const;
    /// Throws IoError if a foreign file has a name that is needed.
    void require_free(const std::string& name) const;

    /// Gives the folder to the run of `manifest` and moves aside what its `replaced` lists. Throws IoError.
    void begin(RunManifest manifest);
    bool is_replacing() const { return manifest_ && manifest_->replaced; }
    /// Deletes the replaced run, because the new one has succeeded.
    void finish_replacing();

    /// Adds a name to the manifest. Call it before the file or checkpoint is made. Throws IoError.
    void add(const std::string& name);
    /// Removes a name from the manifest, whose file changes when it is next written.
    void drop(const std::string& name);
    /// Writes the manifest if it has changed. Throws IoError.
    void write();

private:
    void settle();
    bool is_new_there() const;
    bool is_anything_own() const;

    std::filesystem::path out_;
    Notice notice_;
    RunLock lock_;
    std::optional<RunManifest> manifest_;
    bool has_begun_ = false, is_changed_ = false;
};

/// The identity of the run in `folder`, or of the one that an unfinished --overwrite would restore there.
/// Empty if there is none.
std::string identity_of_run(const std::filesystem::path& folder);

}  // namespace flashoptim::trainer
