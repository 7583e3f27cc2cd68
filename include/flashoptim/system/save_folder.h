// The workspace of a save, a folder beside its target: its name, the proof that it is a workspace, the lock
// that shows that its maker is alive, and its removal. It knows nothing about the saved content.
//
//     .flashoptim-<32 random digits>-<16 digits that follow from those and the target's name>/
//         journal    proof and lock: what this is, for which target, the folder's own name; then the name
//                    of every file that the save may have put into the two folders below
//         new        what is being made: a file or a folder. After a swap: the folder that was replaced
//         old        a folder that was moved aside; with `new` beside it the save stopped between its two
//                    renames
//
// A name alone proves nothing. A workspace is removed only if its owner is the user of this process, its
// journal belongs to its name, no process holds the journal's lock, and every entry is in the journal. Only
// these entries are removed, one by one. A workspace without a complete journal is removed only if it is
// empty.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "flashoptim/system/file_io.h"

namespace flashoptim::checkpoint {

class SaveFolder {
public:
    /// Makes a workspace beside `target`. Throws IoError.
    static SaveFolder create(const std::filesystem::path& target);
    SaveFolder(SaveFolder&&) noexcept = default;
    SaveFolder& operator=(SaveFolder&&) = delete;
    ~SaveFolder() { remove(); }

    const std::filesystem::path& fresh() const { return fresh_; }  ///< `new`
    const std::filesystem::path& aside() const { return aside_; }  ///< `old`

    /// Writes a name to the journal. Call it before a file of that name is made in `new`, or before a folder
    /// with such a file becomes `new` or `old`. Throws IoError.
    void note(const std::string& name);
    /// Syncs the workspace and its journal to the disk. Throws IoError.
    void sync() const;
    /// Keeps the workspace and its content when this object is destroyed.
    void keep() { is_kept_ = true; }

private:
    friend void remove_leftovers(const std::filesystem::path& target);
    friend void recover_target(const std::filesystem::path& target);
    friend std::optional<std::filesystem::path> find_aside(const std::filesystem::path& target);
    enum class Purpose : bool { kRead, kRemove };

    SaveFolder() = default;
    static std::optional<SaveFolder> find(const std::filesystem::path& target, const std::string& name,
                                          Purpose purpose);
    void place_at(const std::filesystem::path& parent, const std::string& name);
    bool was_stopped_between_renames() const;
    bool holds_only_what_is_noted() const;
    bool is_noted(const FileDescriptor& folder) const;
    bool remove_entry(const char* name) const noexcept;
    void remove() noexcept;

    std::filesystem::path path_, fresh_, aside_, target_;
    FileDescriptor folder_, journal_;
    std::set<std::string> names_;
    bool is_kept_ = false;
};

/// Removes the workspaces that dead processes of this user left in the folder of `target`, but none that
/// recover_target() of its own target would put back. A workspace that cannot be removed stays. Throws
/// nothing but std::bad_alloc.
void remove_leftovers(const std::filesystem::path& target);

/// Puts the folder back that a killed save had moved aside, if there is nothing or an empty folder at
/// `target`. For writers.
void recover_target(const std::filesystem::path& target);

/// The path of the folder that a killed save of `target` had moved aside. Changes nothing.
std::optional<std::filesystem::path> find_aside(const std::filesystem::path& target);

/// The name of a workspace for a target of that name; `random` has 32 digits. journal_opening() is the
/// beginning of its journal.
std::string workspace_name(std::string_view target_name, std::string_view random);
std::string journal_opening(std::string_view target_name, std::string_view workspace_name);

}  // namespace flashoptim::checkpoint

#endif
