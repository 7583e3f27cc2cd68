// Files and folders that appear under their name complete or not at all.
#include "flashoptim/system/atomic_path.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "flashoptim/system/file_lock.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr int kMostLinks = 40;  // as many as Linux follows in one path

// Swaps two names with renameat2, if the system has it. Called by number, because not every C library
// declares it.
bool swap_names([[maybe_unused]] const fs::path& left, [[maybe_unused]] const fs::path& right) {
#ifdef SYS_renameat2
    constexpr unsigned kExchange = 1U << 1;  // RENAME_EXCHANGE
    return ::syscall(SYS_renameat2, AT_FDCWD, left.c_str(), AT_FDCWD, right.c_str(), kExchange) == 0;
#else
    return false;
#endif
}

// Syncs the folder if it could be opened. A folder without permission to list it cannot be opened, and so
// cannot be synced.
void sync_if_open(const FileDescriptor& folder, const fs::path& shown) {
    if (folder) sync(folder, shown);
}

FileDescriptor open_in_place(const fs::path& folder, const fs::path& shown) {
    FileDescriptor opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!opened) throw_io_error("replace", shown, errno);
    return opened;
}

void move(const fs::path& from, const fs::path& to, const fs::path& shown) {
    if (::rename(from.c_str(), to.c_str()) != 0) throw_io_error("replace", shown, errno);
}

fs::path cleaned(fs::path target) {
    recover_target(target);
    remove_leftovers(target);
    return target;
}

FileDescriptor new_file(const SaveFolder& workspace, const fs::path& target) {
    FileDescriptor file(::open(workspace.fresh().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (!file) throw_io_error("create", target, errno);
    struct stat old{};
    if (::lstat(target.c_str(), &old) == 0 && S_ISREG(old.st_mode)) ::fchmod(file.get(), old.st_mode & 0777);
    return file;
}

}  // namespace

fs::path real_path(const fs::path& path, std::error_code& error) {
    fs::path target = fs::absolute(path, error);
    if (error) return target;
    if (!target.has_filename()) target = target.parent_path();
    std::error_code ignored;
    for (int links = 0; fs::is_symlink(fs::symlink_status(target, ignored)); ++links) {
        if (links == kMostLinks) {
            error = std::make_error_code(std::errc::too_many_symbolic_link_levels);
            return target;
        }
        target =
            target.parent_path() / fs::read_symlink(target, error);  // an absolute link replaces the path
        if (error) return target;
        if (!target.has_filename()) target = target.parent_path();
    }
    // Only the parent is resolved, because another process may be renaming the file or folder at `target`.
    if (target.filename() == "." || target.filename() == "..") return fs::weakly_canonical(target, error);
    return fs::weakly_canonical(target.parent_path(), error) / target.filename();
}

std::vector<fs::path> make_folders(const fs::path& folder, std::error_code& error) {
    std::vector<fs::path> missing, made;
    std::error_code ignored;
    for (fs::path at = folder; !fs::is_directory(at, ignored) && at != at.root_path(); at = at.parent_path())
        missing.push_back(at);
    for (auto at = missing.rbegin(); at != missing.rend(); ++at) {
        if (::mkdir(at->c_str(), 0777) == 0) {
            made.push_back(*at);
            // Without this, a power cut could remove the folder with all that is written into it.
            if (const FileDescriptor parent = open_existing(at->parent_path()))
                sync(parent, at->parent_path());
        } else if (errno != EEXIST || !fs::is_directory(*at, ignored)) {
            error.assign(errno == EEXIST ? ENOTDIR : errno, std::generic_category());
            break;
        }
    }
    return made;
}

fs::path prepare_target(const fs::path& path) {
    std::error_code error;
    fs::path target = real_path(path, error);
    if (!error && !target.has_filename()) error = std::make_error_code(std::errc::is_a_directory);
    if (!error) make_folders(target.parent_path(), error);
    if (error) throw_io_error("create", path, error.value());
    struct stat status{};
    if (::lstat(target.c_str(), &status) != 0 && errno != ENOENT) throw_io_error("create", path, errno);
    return target;
}

FoundFolder find_folder(const fs::path& target, const fs::path& shown) {
    constexpr int kFlags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    const auto open_target = [&] {
        FoundFolder found{FileDescriptor(::open(target.c_str(), kFlags)), target};
        if (!found.descriptor && errno != ENOENT) throw_io_error("open", shown, errno);
        return found;
    };
    FoundFolder found = open_target();
    if (found.descriptor && !is_empty(found.descriptor)) return found;
    const FileDescriptor parent = open_existing(target.parent_path());
    const ScopedLock no_writer_between_renames(parent);
    found = open_target();
    if (found.descriptor && !is_empty(found.descriptor)) return found;
    if (const auto aside = find_aside(target)) {
        return {FileDescriptor(::open(aside->c_str(), kFlags | O_NOFOLLOW)), *aside};
    }
    return found;
}

TemporaryFolder::TemporaryFolder(fs::path target)
    : target_(cleaned(std::move(target))), workspace_(SaveFolder::create(target_)) {
    if (::mkdir(workspace_.fresh().c_str(), 0777) != 0) throw_io_error("create", target_, errno);
    descriptor_ = open_existing(workspace_.fresh());
    if (!descriptor_) throw_io_error("create", target_, errno);
    // The new folder gets the permissions of the old one. The owner's permissions are added, which are needed
    // to write into it and to rename it.
    struct stat old{};
    if (::lstat(target_.c_str(), &old) == 0 && S_ISDIR(old.st_mode))
        ::fchmod(descriptor_.get(), (old.st_mode & 07777) | S_IRWXU);
}

OutputFile TemporaryFolder::create(const std::string& name) {
    workspace_.note(name);
    FileDescriptor file(
        ::openat(descriptor_.get(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (!file) throw_io_error("create", target_ / name, errno);
    return OutputFile(std::move(file), target_ / name);
}

void TemporaryFolder::note_content(const FileDescriptor& folder, const CheckReplaceable& check) {
    for (const std::string& name : check(folder)) workspace_.note(name);
}

void TemporaryFolder::replace_target(Replace how, const CheckReplaceable& check) {
    sync(descriptor_, target_);
    const FileDescriptor parent = open_existing(target_.parent_path());
    const ScopedLock alone(parent);
    if (::rename(workspace_.fresh().c_str(), target_.c_str()) != 0) {
        if (errno != ENOTEMPTY && errno != EEXIST) throw_io_error("write", target_, errno);
        note_content(open_in_place(target_, target_), check);
        if (how != Replace::kSwapIfPossible || !try_swap(check)) move_aside_and_replace(parent, check);
    }  // else there was nothing or an empty folder
    sync_if_open(parent, target_);  // before the workspace and the replaced folder in it are removed
}

bool TemporaryFolder::try_swap(const CheckReplaceable& check) {
    if (!swap_names(workspace_.fresh(), target_)) return false;
    try {
        note_content(open_in_place(workspace_.fresh(), target_), check);
    } catch (...) {
        if (!swap_names(workspace_.fresh(), target_)) workspace_.keep();
        throw;
    }
    return true;
}

void TemporaryFolder::move_aside_and_replace(const FileDescriptor& parent, const CheckReplaceable& check) {
    workspace_.sync();
    sync_if_open(parent, target_);
    move(target_, workspace_.aside(), target_);
    try {
        note_content(open_in_place(workspace_.aside(), target_), check);
        move(workspace_.fresh(), target_, target_);
    } catch (...) {
        if (::rename(workspace_.aside().c_str(), target_.c_str()) != 0) workspace_.keep();
        throw;
    }
}

TemporaryFile::TemporaryFile(fs::path target)
    : target_(cleaned(std::move(target))),
      workspace_(SaveFolder::create(target_)),
      output_(new_file(workspace_, target_), target_) {}

void TemporaryFile::replace_target() {
    output_.sync();
    const FileDescriptor parent = open_existing(target_.parent_path());  // nothing below allocates memory
    if (::rename(workspace_.fresh().c_str(), target_.c_str()) != 0) throw_io_error("write", target_, errno);
    sync_if_open(parent, target_);
}

namespace {

void remove_in_one_step(const fs::path& target, const FileDescriptor& parent, const CheckReplaceable& check) {
    SaveFolder workspace = SaveFolder::create(target);
    for (const std::string& name : check(open_in_place(target, target))) workspace.note(name);
    if (::rename(target.c_str(), workspace.aside().c_str()) != 0) throw_io_error("remove", target, errno);
    try {
        for (const std::string& name : check(open_in_place(workspace.aside(), target))) workspace.note(name);
    } catch (...) {
        if (::rename(workspace.aside().c_str(), target.c_str()) != 0) workspace.keep();
        throw;
    }
    sync_if_open(parent, target);
}

void remove_file_by_file(const fs::path& target, const FileDescriptor& parent,
                         const CheckReplaceable& check) {
    const FileDescriptor folder = open_in_place(target, target);
    for (const std::string& name : check(folder)) {
        if (::unlinkat(folder.get(), name.c_str(), 0) != 0) throw_io_error("remove", target, errno);
    }
    if (::rmdir(target.c_str()) != 0) throw_io_error("remove", target, errno);
    sync_if_open(parent, target);
}

}  // namespace

void remove_folder(const fs::path& target, const CheckReplaceable& check) {
    const fs::path place = cleaned(target);
    const FileDescriptor parent = open_existing(place.parent_path());
    const ScopedLock alone(parent);
    try {
        remove_in_one_step(place, parent, check);
    } catch (const NoSpaceError&) {
        if (!is_taken(place)) throw;
        remove_file_by_file(place, parent, check);
    }
}

}  // namespace flashoptim::checkpoint
