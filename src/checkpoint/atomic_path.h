// Files and folders that appear under their name complete or not at all: temporary names, locks, renames,
// what dead runs left. Knows nothing about what is in them.
//
// Beside a target `name` there may lie
//   name.tmp-<process>-<n>  what a writer is making, or the old folder after a swap; worthless once its writer is gone
//   name.old-<process>-<n>  a folder moved aside on a file system that cannot swap; goes back if `name` is missing
// A writer holds a lock on its own, so that others can tell whether it still lives, and one on the parent while it has moved
// the target aside.
#pragma once

#include <cstdint>
#include <filesystem>
#include <system_error>

#include "file_io.h"

namespace flashoptim::checkpoint {

/// The real, absolute path behind `path`, which need not exist.
std::filesystem::path real_path(const std::filesystem::path& path, std::error_code& error);

/// The same, in a folder that now exists. Throws IoError.
std::filesystem::path prepare_target(const std::filesystem::path& path);

/// Puts a folder back that a dead writer moved aside, if `target` is missing; waits for a living one. Returns whether there
/// is something at `target`.
bool recover_target(const std::filesystem::path& target);

/// Recovers, then removes what writers of `target` that are no more left beside it.
void remove_leftovers(const std::filesystem::path& target);

/// How a folder takes the place of another: in one step where system and file system can swap two names, else
/// in two.
enum class Replace : std::uint8_t { kSwapIfPossible, kMoveAside };

/// A folder in the making beside its target; removed if it does not get there.
class TemporaryFolder {
public:
    /// `target` comes from prepare_target. Throws IoError.
    explicit TemporaryFolder(std::filesystem::path target);
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder();

    /// A new file in the folder.
    OutputFile create(const std::filesystem::path& name) const;

    /// Makes this folder the target, durably, and removes what was there. Call once, when all files are
    /// synced. Throws IoError.
    void replace_target(Replace how);

private:
    void move_aside_and_replace(const FileDescriptor& parent);

    std::filesystem::path target_;
    std::filesystem::path path_;
    FileDescriptor descriptor_;
};

/// A file in the making beside its target; removed if it does not get there.
class TemporaryFile {
public:
    /// `target` comes from prepare_target. Throws IoError.
    explicit TemporaryFile(std::filesystem::path target);
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    ~TemporaryFile();

    OutputFile& output() { return output_; }

    /// Makes this file the target, durably. Call once, when everything is written. Throws IoError.
    void replace_target();

private:
    std::filesystem::path target_;
    std::filesystem::path path_;
    OutputFile output_;
};

}  // namespace flashoptim::checkpoint
