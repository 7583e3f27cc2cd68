// The `out` folder of a run: who may write there, what is replaced, which checkpoints stay. Never looks into
// a checkpoint's tensors and needs no torch header.
#pragma once

#include <cstdint>
#include <filesystem>

#include "trainer/checkpoint_list.h"
#include "trainer/owned_folder.h"

namespace flashoptim::trainer {

/// Throws InvalidArgument where a run in the folder `out` would be taken for data the next time, so that
/// nothing could go on from it, or where the data has a name that the run needs there. Either may be empty.
void require_apart(const std::filesystem::path& data, const std::filesystem::path& out);

class RunFolder {
public:
    /// Takes the folder for this process alone. Throws what OwnedFolder does.
    RunFolder(const std::filesystem::path& out, const Notice& notice);

    /// Throws InvalidArgument if a run is there that neither goes on from `resumed_from` nor may be replaced,
    /// and IoError if something that is not of a run has a name that is needed. Changes nothing.
    void require_permission(const std::filesystem::path& resumed_from, std::int64_t last_step,
                            bool overwrite) const;

    /// Makes the folder ready for the steps after `step`, up to `last_step`, which go on from `resumed_from`
    /// (empty: from nothing). Returns whether that is a checkpoint in this very folder, by whatever path it
    /// was named. Then only what follows `step` has to go, else all that is of a run; it is moved aside until
    /// the first checkpoint. Throws InvalidArgument if something has to go and `overwrite` does not allow it;
    /// IoError.
    bool begin(const std::filesystem::path& resumed_from, std::int64_t step, std::int64_t last_step,
               bool overwrite);

    std::filesystem::path metrics() const;
    /// Where the rows lie that the run goes on from.
    std::filesystem::path metrics_so_far() const;

    /// Around the writing of a checkpoint. Throw IoError.
    void begin_checkpoint(std::int64_t step);
    void end_checkpoint();
    /// Removes all but the newest `kept` checkpoints of the run. One in which somebody keeps other files
    /// stays: `notice` hears why, and the run does not end for it.
    void remove_old_checkpoints(std::int64_t kept);

    /// Whether what was there before would come back if this ended now.
    bool is_replacing() const { return folder_.is_replacing(); }
    /// The run ended well. Throws IoError.
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
    bool is_new_ = false;  // nothing of it is worth keeping before its first row
};

}  // namespace flashoptim::trainer
