// Files and folders that appear under their name complete or not at all: where they are made, how they take
// their place, how what they replace goes. Knows nothing about what is in them.
//
// Everything is made in a workspace beside the target (workspace.h). A file takes its place in one rename. A
// folder changes places with the one that it replaces; where the system or the file system cannot swap two
// names, the old one is moved aside first. A writer holds a lock on its workspace, so that others can tell
// whether it still lives, and one on the parent while it replaces a folder. Reading changes nothing: a folder
// that a killed writer had moved aside is opened where it lies.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <system_error>
#include <vector>

#include "file_io.h"
#include "save_folder.h"

namespace flashoptim::checkpoint {

/// The real, absolute path behind `path`, which need not exist; a link at its end is followed, also
/// one that leads nowhere yet.
std::filesystem::path real_path(const std::filesystem::path& path, std::error_code& error);

/// Makes the folder at that absolute path and those above it that are missing, durably. Returns those that
/// this call made, outermost first, also where `error` is set.
std::vector<std::filesystem::path> make_folders(const std::filesystem::path& folder, std::error_code& error);

/// The real path of `path`, in a folder that now exists. Throws IoError.
std::filesystem::path prepare_target(const std::filesystem::path& path);

/// An open folder and where it lies.
struct FoundFolder {
    FileDescriptor descriptor;
    std::filesystem::path path;
};

/// The folder at `target`, or, if nothing or an empty folder is there, where a writer that was killed
/// between its two renames left it; waits for a living one. No descriptor: there is none. `shown` is the
/// path in messages. Throws IoError.
FoundFolder find_folder(const std::filesystem::path& target, const std::filesystem::path& shown);

/// How a folder takes the place of another: in one step where system and file system can swap two names, else
/// in two.
enum class Replace : std::uint8_t { kSwapIfPossible, kMoveAside };

/// The names of all that lies in an open folder, last the one that tells what the others are. Throws where
/// something there must not be lost.
using CheckReplaceable = std::function<std::vector<std::string>(const FileDescriptor& folder)>;

/// A folder in the making beside its target, with the permissions of what is there;
/// removed if it does not get there.
class TemporaryFolder {
public:
    /// `target` comes from prepare_target. Removes what dead writers left beside it. Throws IoError.
    explicit TemporaryFolder(std::filesystem::path target);

    /// A new file in the folder. Throws IoError.
    OutputFile create(const std::string& name);

    /// Makes this folder the target, durably, and removes what was there if `check` lets it go: asked before
    /// the folder there is touched, and again when nobody reaches it any more under its name. Call once, when
    /// all files are synced. Throws IoError and what `check` throws; what was there is then there again.
    void replace_target(Replace how, const CheckReplaceable& check);

private:
    void note_content(const FileDescriptor& folder, const CheckReplaceable& check);
    bool try_swap(const CheckReplaceable& check);
    void move_aside_and_replace(const FileDescriptor& parent, const CheckReplaceable& check);

    std::filesystem::path target_;
    SaveFolder workspace_;
    FileDescriptor descriptor_;
};

/// A file in the making beside its target; removed if it does not get there.
class TemporaryFile {
public:
    /// `target` comes from prepare_target. Removes what dead writers left beside it. Throws IoError.
    explicit TemporaryFile(std::filesystem::path target);

    OutputFile& output() { return output_; }

    /// Makes this file the target, durably. Call once, when everything is written. Throws IoError.
    void replace_target();

private:
    std::filesystem::path target_;
    SaveFolder workspace_;
    OutputFile output_;
};

/// Removes the folder at `target` if `check` lets it go: it leaves its name first, complete, and only then
/// loses its files. On a full disk, which has no room for a workspace, its files go one by one where they
/// lie. Throws IoError and what `check` throws; the folder is then as it was, or may be removed again.
void remove_folder(const std::filesystem::path& target, const CheckReplaceable& check);

}  // namespace flashoptim::checkpoint
