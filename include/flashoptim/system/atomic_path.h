// Files and folders that appear under their name complete or not at all: where they are made, how they
// replace the target, and how the replaced target is removed. Knows nothing about their content.
//
// Everything is made in a workspace beside the target (save_folder.h). A file replaces its target with one
// rename. A folder is swapped with the folder that it replaces. If the system or the file system cannot swap
// two names, the old folder is moved aside first. A writer holds a lock on its workspace, so that others can
// tell whether the writer is alive. It also holds a lock on the parent while it replaces a folder. Reading
// changes nothing: a folder that a killed writer had moved aside is opened where it lies.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <system_error>
#include <vector>

#include "flashoptim/system/file_io.h"
#include "flashoptim/system/save_folder.h"

namespace flashoptim::checkpoint {

/// The absolute path of `path` with all links resolved. The path need not exist. A link at its end is
/// followed even if its target does not exist.
std::filesystem::path real_path(const std::filesystem::path& path, std::error_code& error);

/// Makes the folder at an absolute path and all missing folders above it, durably. Returns the folders that
/// this call made, outermost first, also if `error` is set.
std::vector<std::filesystem::path> make_folders(const std::filesystem::path& folder, std::error_code& error);

/// Makes the missing folders above `path` and returns its real path. Throws IoError.
std::filesystem::path prepare_target(const std::filesystem::path& path);

/// An open folder and its path.
struct FoundFolder {
    FileDescriptor descriptor;
    std::filesystem::path path;
};

/// Opens the folder at `target`. If there is nothing or an empty folder, opens the folder that a writer had
/// moved aside before it was killed between its two renames. Waits for a writer that is alive. The descriptor
/// is empty if there is none. `shown` is the path in messages. Throws IoError.
FoundFolder find_folder(const std::filesystem::path& target, const std::filesystem::path& shown);

/// How a folder replaces another: by one swap, if the system and the file system can swap names, or by two
/// renames.
enum class Replace : std::uint8_t { kSwapIfPossible, kMoveAside };

/// Returns the names of all entries of an open folder; the last one is the file that describes the others.
/// Throws if an entry must not be lost.
using CheckReplaceable = std::function<std::vector<std::string>(const FileDescriptor& folder)>;

/// A folder that is being made beside its target, with the target's permissions. The destructor removes it
/// unless it has replaced the target.
class TemporaryFolder {
public:
    /// `target` comes from prepare_target. Removes what dead writers left beside it. Throws IoError.
    explicit TemporaryFolder(std::filesystem::path target);

    /// Makes a file in the folder. Throws IoError.
    OutputFile create(const std::string& name);

    /// Makes this folder the target, durably, and removes the old target if `check` allows it. `check` runs
    /// before the old folder is touched, and again when it can no longer be reached under its name. Call
    /// once, when all files are synced. Throws IoError and what `check` throws; the old target is then in
    /// place again.
    void replace_target(Replace how, const CheckReplaceable& check);

private:
    void note_content(const FileDescriptor& folder, const CheckReplaceable& check);
    bool try_swap(const CheckReplaceable& check);
    void move_aside_and_replace(const FileDescriptor& parent, const CheckReplaceable& check);

    std::filesystem::path target_;
    SaveFolder workspace_;
    FileDescriptor descriptor_;
};

/// A file that is being made beside its target. The destructor removes it unless it has replaced the target.
class TemporaryFile {
public:
    /// `target` comes from prepare_target. Removes what dead writers left beside it. Throws IoError.
    explicit TemporaryFile(std::filesystem::path target);

    OutputFile& output() { return output_; }

    /// Makes this file the target, durably. Call once, after the last write. Throws IoError.
    void replace_target();

private:
    std::filesystem::path target_;
    SaveFolder workspace_;
    OutputFile output_;
};

/// Removes the folder at `target` if `check` allows it. The folder is renamed first, complete, and only then
/// are its files removed. A full disk may have no room for a workspace; the files are then removed one by one
/// in place. Throws IoError and what `check` throws; the folder is then as it was, or may be removed again.
void remove_folder(const std::filesystem::path& target, const CheckReplaceable& check);

}  // namespace flashoptim::checkpoint

#endif
