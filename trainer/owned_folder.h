// A folder that belongs to one run or one comparison at a time: locked while this lives, with a manifest of
// what is its own, and with what an earlier process that was killed left unfinished brought to its end. What
// a run does in it is not known here.
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
    /// Locks `out`, and finishes what a killed --overwrite began there: the old run is put back, or removed
    /// where the new one holds. Throws IoError (in use, cannot be written), InvalidArgument (it is of the
    /// other kind), FormatError (the manifest).
    OwnedFolder(std::filesystem::path out, RunKind kind, Notice notice);
    OwnedFolder(const OwnedFolder&) = delete;
    OwnedFolder& operator=(const OwnedFolder&) = delete;
    /// A run that is replaced and not yet gone is put back. A folder in which nothing was made is as it was.
    ~OwnedFolder();

    const std::filesystem::path& path() const { return out_; }
    const Notice& notice() const { return notice_; }

    /// What lies here as one's own: by the manifest, or by its content where an earlier version wrote it.
    const std::optional<RunManifest>& manifest() const { return manifest_; }
    /// Whether `name` is there, and as what a run leaves it: a file, or for a checkpoint a folder.
    bool has_own(const std::string& name) const;
    /// Throws IoError if something that is not one's own has a name that is needed.
    void require_free(const std::string& name) const;

    /// From here on the folder belongs to the run of `manifest`; what its `replaced` names is moved aside.
    /// Throws IoError.
    void begin(RunManifest manifest);
    bool is_replacing() const { return manifest_ && manifest_->replaced; }
    /// The new run holds: what it replaced is removed.
    void finish_replacing();

    /// Before a file or checkpoint of that name is made. Throws IoError.
    void add(const std::string& name);
    /// It was removed. The manifest on the disk says so when it is written the next time.
    void drop(const std::string& name);
    /// Writes a manifest that has changed. Throws IoError.
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

/// What the run in `folder` is, or the one that an unfinished --overwrite would put back there; empty if
/// there is none.
std::string identity_of_run(const std::filesystem::path& folder);

}  // namespace flashoptim::trainer
