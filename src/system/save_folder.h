// The folder in which a save works, beside its target: its name, the proof that it is ours, the lock that
// shows that its maker is alive, and its removal. It knows nothing of what is saved.
//
//     .flashoptim-<32 random digits>-<16 digits that follow from those and the target's name>/
//         journal    proof and lock: what this is, for which target, the folder's own name; then the name
//                    of every file that the save may have put into the two folders below
//         new        what is being made: a file or a folder. After a swap: the folder that was replaced
//         old        a folder that was moved aside; with `new` beside it the save stopped between its two
//                    renames
//
// Nobody chooses such a name, and a name alone proves nothing: a folder is removed only if its owner is the
// user of this process, its journal is the one that belongs to the name, nobody holds the journal's lock, and
// all that lies in it is in the journal. Only those names are removed, one by one. What was never finished
// before its journal is removed if it is empty.
#pragma once

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "file_io.h"

namespace flashoptim::checkpoint {

class SaveFolder {
public:
    /// A new one beside `target`. Throws IoError.
    static SaveFolder create(const std::filesystem::path& target);
    SaveFolder(SaveFolder&&) noexcept = default;
    SaveFolder& operator=(SaveFolder&&) = delete;
    ~SaveFolder() { remove(); }

    const std::filesystem::path& fresh() const { return fresh_; }  ///< `new`
    const std::filesystem::path& aside() const { return aside_; }  ///< `old`

    /// Before a file of that name is made in `new`, or before a folder that has one becomes
    /// `new` or `old`. Throws IoError.
    void note(const std::string& name);
    /// Returns when the folder and its journal are on the disk. Throws IoError.
    void sync() const;
    /// What is in it stays where it is.
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

/// Removes what dead processes of this user left in the folder of `target`, but not what `recover_target` of
/// its target would put back. What cannot be removed stays. Throws nothing but std::bad_alloc.
void remove_leftovers(const std::filesystem::path& target);

/// Puts the folder back that a save moved aside before it was killed, if there is nothing at `target`, or an
/// empty folder. For writers.
void recover_target(const std::filesystem::path& target);

/// Where the folder lies that a killed save of `target` had moved aside. Changes nothing.
std::optional<std::filesystem::path> find_aside(const std::filesystem::path& target);

/// The name of a workspace of a target of that name; `random` has 32 digits. And
/// what its journal begins with.
std::string workspace_name(std::string_view target_name, std::string_view random);
std::string journal_opening(std::string_view target_name, std::string_view workspace_name);

}  // namespace flashoptim::checkpoint
