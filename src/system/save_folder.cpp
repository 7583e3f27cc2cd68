// The workspace of a save: how it is made, recognised and removed.
#include "flashoptim/system/save_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <vector>

#include "flashoptim/system/file_lock.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = ".flashoptim-";
constexpr std::size_t kRandomDigits = 32, kCheckDigits = 16;
constexpr std::string_view kDigits = "0123456789abcdef";
constexpr const char* kJournal = "journal";
constexpr const char* kNew = "new";
constexpr const char* kOld = "old";
constexpr std::string_view kWhatItIs = "flashoptim: a save that is being made, layout 1\n";
constexpr off_t kLongestJournal = off_t{1} << 26;  // a quarter of a million names of 255 bytes
constexpr int kMostTries = 1000;  // tries to make a workspace; a cleaner may remove it at once

std::string digits_of(std::uint64_t number) {
    std::string text(kCheckDigits, '0');
    for (auto digit = text.rbegin(); digit != text.rend(); ++digit, number >>= 4)
        *digit = kDigits[number & 0xF];
    return text;
}

/// FNV-1a. It need not be secure, because a name alone proves nothing.
std::uint64_t hash_of(std::string_view text, std::uint64_t hash = 0xcbf29ce484222325U) {
    for (const char character : text) {
        hash = (hash ^ static_cast<unsigned char>(character)) * 0x100000001b3U;
    }
    return hash;
}

/// Digits that differ in every call of every process, even if the system has no random numbers.
std::string random_digits() {
    static std::atomic<std::uint64_t> calls{0};
    std::uint64_t parts[2] = {};
    if (::getentropy(parts, sizeof parts) != 0) {
        const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
        parts[0] = hash_of(std::to_string(now));
        parts[1] = static_cast<std::uint64_t>(::getpid()) << 32;
    }
    parts[1] += calls++;
    return digits_of(parts[0]) + digits_of(parts[1]);
}

/// The random digits in the name of a workspace; empty for any other name.
std::string_view random_part(std::string_view name) {
    if (name.size() != kPrefix.size() + kRandomDigits + 1 + kCheckDigits || !name.starts_with(kPrefix))
        return {};
    name.remove_prefix(kPrefix.size());
    const std::string_view random = name.substr(0, kRandomDigits), check = name.substr(kRandomDigits + 1);
    const bool is_ours = name[kRandomDigits] == '-' &&
                         random.find_first_not_of(kDigits) == std::string_view::npos &&
                         check.find_first_not_of(kDigits) == std::string_view::npos;
    return is_ours ? random : std::string_view();
}

FileDescriptor open_in(const FileDescriptor& folder, const char* name, int flags) {
    return FileDescriptor(::openat(folder.get(), name, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666));
}

std::optional<struct stat> status_of(const FileDescriptor& descriptor) {
    struct stat status{};
    if (::fstat(descriptor.get(), &status) != 0) return std::nullopt;
    return status;
}

/// Whether an open file still has a name.
bool is_linked(const FileDescriptor& descriptor) {
    const auto status = status_of(descriptor);
    return status && status->st_nlink > 0;
}

mode_t type_in(const FileDescriptor& folder, const char* name) {
    struct stat status{};
    if (::fstatat(folder.get(), name, &status, AT_SYMLINK_NOFOLLOW) != 0) return 0;
    return status.st_mode & S_IFMT;
}

bool is_file_name(std::string_view name) {
    return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos;
}

struct Journal {
    bool is_complete = false;  // false: the writer was killed while it wrote the journal's opening
    std::string target_name;
    std::set<std::string> names;
};

std::optional<std::string> read_journal(const FileDescriptor& file) {
    const auto status = status_of(file);
    if (!status || !S_ISREG(status->st_mode) || status->st_size > kLongestJournal) return std::nullopt;
    std::string text(static_cast<std::size_t>(status->st_size), '\0');
    for (std::size_t at = 0; at < text.size();) {
        const ssize_t count = ::pread(file.get(), text.data() + at, text.size() - at, static_cast<off_t>(at));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return std::nullopt;
        at += static_cast<std::size_t>(count);
    }
    return text;
}

/// The journal of the workspace `name`; empty if the text is not its journal. An incomplete journal belongs
/// to `target_name` or to nobody.
std::optional<Journal> parse_journal(const std::string& text, const std::string& name,
                                     const std::string& target_name) {
    Journal journal;
    const bool is_ours = text.size() > kWhatItIs.size() && text.starts_with(kWhatItIs);
    const std::size_t end = is_ours ? text.find('\0', kWhatItIs.size()) : std::string::npos;
    if (end != std::string::npos) journal.target_name = text.substr(kWhatItIs.size(), end - kWhatItIs.size());
    const std::string opening = journal_opening(journal.target_name, name);
    if (end == std::string::npos || !text.starts_with(opening)) {
        const bool is_of_target = workspace_name(target_name, random_part(name)) == name;
        if (is_of_target && journal_opening(target_name, name).starts_with(text)) return Journal{};
        return std::nullopt;
    }
    if (workspace_name(journal.target_name, random_part(name)) != name) return std::nullopt;
    journal.is_complete = true;
    // The writer was killed while it wrote the text after the last NUL. It made no file of that name.
    for (std::size_t begin = opening.size(), next = 0; (next = text.find('\0', begin)) != std::string::npos;
         begin = next + 1) {
        std::string noted = text.substr(begin, next - begin);
        if (!is_file_name(noted)) return std::nullopt;
        journal.names.insert(std::move(noted));
    }
    return journal;
}

/// Calls `use` with every name in the folder of `target` that has the form of a workspace's name.
template <typename Use>
void for_each_name(const fs::path& target, Use use) {
    const FileDescriptor parent = open_existing(target.parent_path());
    if (!parent) return;
    std::vector<std::string> names;  // listed completely before any is removed
    list_names(parent, [&names](const char* name) {
        if (!random_part(name).empty()) names.emplace_back(name);
    });
    for (const std::string& name : names) use(name);
}

}  // namespace

std::string workspace_name(std::string_view target_name, std::string_view random) {
    std::string name(kPrefix);
    name.append(random).append("-");
    return name.append(digits_of(hash_of(target_name, hash_of(random))));
}

std::string journal_opening(std::string_view target_name, std::string_view workspace_name) {
    std::string text(kWhatItIs);
    text.append(target_name).push_back('\0');
    text.append(workspace_name).push_back('\0');
    return text;
}

void SaveFolder::place_at(const fs::path& parent, const std::string& name) {
    path_ = parent / name;
    fresh_ = path_ / kNew;
    aside_ = path_ / kOld;
}

SaveFolder SaveFolder::create(const fs::path& target) {
    SaveFolder made;
    made.target_ = target;
    for (int tries = 0;; ++tries) {
        const std::string name = workspace_name(target.filename().string(), random_digits());
        const std::string opening = journal_opening(target.filename().string(), name);
        made.place_at(target.parent_path(), name);
        if (::mkdir(made.path_.c_str(), 0777) != 0) {
            if (errno == EEXIST && tries < kMostTries) continue;
            throw_io_error("create", target, errno);
        }
        made.folder_ = open_existing(made.path_);
        if (made.folder_)
            made.journal_ = open_in(made.folder_, kJournal, O_RDWR | O_CREAT | O_EXCL | O_APPEND);
        if (!made.folder_ || !made.journal_) {
            const int error_number = errno;
            ::rmdir(made.path_.c_str());
            made.folder_ = {};
            if (error_number == ENOENT && tries < kMostTries)
                continue;  // a cleaner removed the empty workspace
            throw_io_error("create", target, error_number);
        }
        if (try_lock(made.journal_) != Lock::kHeldByOther && is_linked(made.journal_)) {
            write_all(made.journal_, opening, target);
            return made;
        }
        made.folder_ = {};  // a cleaner locked it first
        made.journal_ = {};
    }
}

/// The workspace of that name in the folder of `target`, if its journal proves that it is one. To be removed,
/// it must also belong to this user, its maker must be dead, and it must hold nothing else.
std::optional<SaveFolder> SaveFolder::find(const fs::path& target, const std::string& name, Purpose purpose) {
    SaveFolder found;
    found.is_kept_ = true;
    found.place_at(target.parent_path(), name);
    found.folder_ =
        FileDescriptor(::open(found.path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!found.folder_) return std::nullopt;
    const bool is_to_go = purpose == Purpose::kRemove;
    const auto is_this_users = [](const std::optional<struct stat>& status) {
        return status && status->st_uid == ::geteuid();
    };
    if (is_to_go && !is_this_users(status_of(found.folder_))) return std::nullopt;

    // On NFS, locking needs a file that is open for writing.
    found.journal_ = open_in(found.folder_, kJournal, is_to_go ? O_RDWR : O_RDONLY);
    if (!found.journal_) {
        // The writer was killed before it made the journal or after it removed it. rmdir leaves a folder that
        // is not empty alone.
        if (is_to_go && errno == ENOENT &&
            workspace_name(target.filename().string(), random_part(name)) == name) {
            ::rmdir(found.path_.c_str());
        }
        return std::nullopt;
    }
    if (is_to_go && (!is_this_users(status_of(found.journal_)) || try_lock(found.journal_) != Lock::kTaken ||
                     !is_linked(found.journal_))) {
        return std::nullopt;
    }
    const auto text = read_journal(found.journal_);
    auto journal = text ? parse_journal(*text, name, target.filename().string()) : std::nullopt;
    if (!journal || (!journal->is_complete && !is_to_go)) return std::nullopt;
    found.target_ = target.parent_path() / journal->target_name;
    found.names_ = std::move(journal->names);
    if (is_to_go && !found.holds_only_what_is_noted()) return std::nullopt;
    const bool has_content = type_in(found.folder_, kNew) != 0 || type_in(found.folder_, kOld) != 0;
    if (!journal->is_complete && has_content) return std::nullopt;
    return found;
}

bool SaveFolder::was_stopped_between_renames() const {
    return type_in(folder_, kNew) == S_IFDIR && type_in(folder_, kOld) == S_IFDIR;
}

bool SaveFolder::is_noted(const FileDescriptor& folder) const {
    bool all = true;
    const bool is_listed = list_names(folder, [&](const char* name) {
        all = all && names_.contains(name) && type_in(folder, name) == S_IFREG;
    });
    return all && is_listed;
}

bool SaveFolder::holds_only_what_is_noted() const {
    bool all = true;
    const bool is_listed = list_names(folder_, [&](const std::string_view name) {
        if (name == kJournal) return;
        const bool is_new = name == kNew;
        const mode_t type = is_new ? type_in(folder_, kNew) : name == kOld ? type_in(folder_, kOld) : 0;
        if (is_new && type == S_IFREG) return;
        all = all && type == S_IFDIR &&
              is_noted(open_in(folder_, is_new ? kNew : kOld, O_RDONLY | O_DIRECTORY));
    });
    return all && is_listed;
}

void SaveFolder::note(const std::string& name) {
    if (!names_.insert(name).second) return;
    write_all(journal_, name + '\0', target_);
}

void SaveFolder::sync() const {
    checkpoint::sync(journal_, target_);
    checkpoint::sync(folder_, target_);
}

bool SaveFolder::remove_entry(const char* name) const noexcept {
    if (::unlinkat(folder_.get(), name, 0) == 0 || errno == ENOENT) return true;
    if (::unlinkat(folder_.get(), name, AT_REMOVEDIR) == 0)
        return true;  // removed, so no descriptor is needed
    {
        const FileDescriptor entry = open_in(folder_, name, O_RDONLY | O_DIRECTORY);
        if (!entry) return false;
        for (const std::string& noted : names_) ::unlinkat(entry.get(), noted.c_str(), 0);
    }
    return ::unlinkat(folder_.get(), name, AT_REMOVEDIR) == 0;
}

// Allocates nothing, because it also runs when memory or the disk is used up.
void SaveFolder::remove() noexcept {
    if (!folder_ || is_kept_) return;
    const bool is_new_gone = remove_entry(kNew), is_old_gone = remove_entry(kOld);
    if (is_new_gone && is_old_gone) {
        ::unlinkat(folder_.get(), kJournal, 0);
        ::rmdir(path_.c_str());
    }
}

void remove_leftovers(const fs::path& target) {
    for_each_name(target, [&target](const std::string& name) {
        auto leftover = SaveFolder::find(target, name, SaveFolder::Purpose::kRemove);
        if (!leftover || (leftover->was_stopped_between_renames() && is_vacant(leftover->target_))) return;
        leftover->is_kept_ = false;
    });
}

void recover_target(const fs::path& target) {
    if (!is_vacant(target)) return;
    const FileDescriptor parent = open_existing(target.parent_path());
    if (!parent) return;
    const ScopedLock no_writer_between_renames(parent);
    for_each_name(target, [&](const std::string& name) {
        const auto leftover = SaveFolder::find(target, name, SaveFolder::Purpose::kRemove);
        if (!leftover || leftover->target_ != target || !leftover->was_stopped_between_renames()) return;
        // The rename fails if something other than an empty folder is at the target by now.
        if (is_vacant(target) && ::rename(leftover->aside_.c_str(), target.c_str()) == 0) {
            ::fsync(parent.get());
        }
    });
}

std::optional<fs::path> find_aside(const fs::path& target) {
    std::optional<fs::path> found;
    for_each_name(target, [&](const std::string& name) {
        const auto leftover = SaveFolder::find(target, name, SaveFolder::Purpose::kRead);
        if (leftover && leftover->target_ == target && leftover->was_stopped_between_renames()) {
            found = leftover->aside_;
        }
    });
    return found;
}

}  // namespace flashoptim::checkpoint
