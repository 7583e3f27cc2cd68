// The `out` folder of a run: who may write there, what is replaced, and which checkpoints are kept. Never
// reads the tensors of a checkpoint; needs no torch header.
#pragma once

#include <cstdint>
#include <filesystem>

#include "trainer/checkpoint_list.h"
#include "trainer/owned_folder.h"

namespace flashoptim::trainer {

/// Throws InvalidArgument if the files of a run in `out` would become part of the data, so that the run could
/// not be resumed, or if the data has a name that the run needs. Either path may be empty.
void require_apart(const std::filesystem::path& data, const std::filesystem::path& out);

class RunFolder {
public:
    /// Locks the folder. Throws what OwnedFolder throws.
    RunFolder(const std::filesystem::path& out, const Notice& notice);

    /// Throws InvalidArgument if the folder has a run that `resumed_from` does not continue and that must not
    /// be replaced, and IoError if a foreign file has a name that is needed. Changes nothing.
    void require_permission(const std::filesystem::path& resumed_from, std::int64_t last_step,
                            bool overwrite) const;

    /// Prepares the folder for the steps after `step`, up to `last_step`, which continue from `resumed_from`
    /// (empty: a new run). Returns whether `resumed_from` is a checkpoint in this same folder, by whatever
    /// path. Then only the files of later steps must go, otherwise all files of the old run. They are moved
    /// aside until the first checkpoint. Throws InvalidArgument if files must go and `overwrite` is false;
    /// IoError.
    bool begin(const std::filesystem::path& resumed_from, std::int64_t step, std::int64_t last_step,
               bool overwrite);

    std::filesystem::path metrics() const;
    /// The metrics file with the rows that the run continues.
    std::filesystem::path metrics_so_far() const;

    /// Call these before and after writing a checkpoint. Throw IoError.
    void begin_checkpoint(std::int64_t step);
    void end_checkpoint();
    /// Removes all but the newest `kept` checkpoints of the run. A checkpoint with foreign files in its
    /// folder stays; `notice` receives the reason, and the run goes on.
    void remove_old_checkpoints(std::int64_t kept);

    /// Whether the previous run would be restored if this one ended now.
    bool is_replacing() const { return folder_.is_replacing(); }
    /// Records that the run ended well. Throws IoError.
    void end();

    ~RunFolder();
    RunFolder(const RunFolder&) = delete;
    RunFolder& operator=(const RunFolder&) = delete;

private:
    bool is_checkpoint_here(const std::filesystem::path& checkpoint) const;
    Names own_things_after(std::int64_t step) const;
    void require_free_names(std::int64_t step, std::int64_t last_step) const;
    Names make_room(const Names& later, bool continues, bool overwrite) const;

    OwnedFolder folder_;
    bool is_new_ = false;  // a new run is not kept before its first row
};

}  // namespace flashoptim::trainer
