// Files and folders that appear under their name complete or not at all.
#include "atomic_path.h"

#include <fcntl.h>
#include <stdio.h>  // renameat2
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <thread>
#include <vector>

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTemporary = ".tmp-";
constexpr std::string_view kMovedAside = ".old-";
constexpr int kMostTries = 1000;  // to find a free temporary name

fs::path sibling(const fs::path& target, std::string_view kind, int number) {
    fs::path path = target;
    return path += std::string(kind) + std::to_string(::getpid()) + "-" + std::to_string(number);
}

// A name beside `target` that this process never makes twice: a cleaner that is still removing what had a name must not find
// another writer's work under it. This counter is the one thing that all threads of the process share.
fs::path new_temporary(const fs::path& target) {
    static std::atomic<int> next_number{0};
    return sibling(target, kTemporary, next_number++);
}

// All paths beside `target` that `sibling` may have made, in any process.
std::vector<fs::path> siblings(const fs::path& target, std::string_view kind) {
    const std::string prefix = target.filename().string() + std::string(kind);
    std::vector<fs::path> found;
    std::error_code ignored;
    for (fs::directory_iterator entry(target.parent_path(), ignored), end; entry != end;
         entry.increment(ignored)) {
        const std::string name = entry->path().filename().string();
        if (name.starts_with(prefix) &&
            name.find_first_not_of("0123456789-", prefix.size()) == std::string::npos) {
            found.push_back(entry->path());
        }
    }
    return found;
}

FileDescriptor open_existing(const fs::path& path) {
    return FileDescriptor(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
}

bool is_taken(const fs::path& path) {
    std::error_code ignored;
    return fs::exists(fs::symlink_status(path, ignored));
}

enum class Lock : std::uint8_t { kTaken, kHeldByOther, kUnsupported };

Lock try_lock(const FileDescriptor& descriptor) {
    while (::flock(descriptor.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) return Lock::kHeldByOther;
        if (errno != EINTR) return Lock::kUnsupported;
    }
    return Lock::kTaken;
}

// The lock on a target's parent under which a writer makes two renames. It is held for no longer than that, so waiting for it
// has an end: others may lock the folder for reasons of their own. Where folders cannot be locked (NFS) a writer is given the
// time that two renames take.
class ScopedLock {
public:
    explicit ScopedLock(const FileDescriptor& folder) : folder_(folder) {
        constexpr int kMostTriesWhileHeld = 1000, kTriesWithoutLock = 40;
        for (int tries = 0; tries < kMostTriesWhileHeld; ++tries) {
            const Lock state = try_lock(folder_);
            if (state == Lock::kTaken || (state == Lock::kUnsupported && tries == kTriesWithoutLock)) return;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }
    ScopedLock(const ScopedLock&) = delete;
    ScopedLock& operator=(const ScopedLock&) = delete;
    ~ScopedLock() { ::flock(folder_.get(), LOCK_UN); }

private:
    const FileDescriptor& folder_;
};

bool swap_names([[maybe_unused]] const fs::path& left, [[maybe_unused]] const fs::path& right) {
#ifdef RENAME_EXCHANGE
    return ::renameat2(AT_FDCWD, left.c_str(), AT_FDCWD, right.c_str(), RENAME_EXCHANGE) == 0;
#else
    return false;
#endif
}

void remove_quietly(const fs::path& path) {
    std::error_code ignored;
    fs::remove_all(path, ignored);
}

struct Claim {
    fs::path path;
    FileDescriptor descriptor;
};

// Makes, with `make`, a temporary of `target` that no other process takes for abandoned. `make` opens it or
// fails with errno set.
template <typename Make>
Claim claim_temporary(const fs::path& target, Make make) {
    for (int tries = 0;; ++tries) {
        Claim claim{new_temporary(target), {}};
        claim.descriptor = make(claim.path);
        if (!claim.descriptor) {
            // A dead process of the same number left the name, or a cleaner was faster than our lock.
            if ((errno == EEXIST || errno == ENOENT) && tries < kMostTries) continue;
            throw_io_error("create", target, errno);
        }
        if (try_lock(claim.descriptor) != Lock::kHeldByOther && is_at(claim.descriptor, claim.path))
            return claim;
    }
}

Claim claim_folder(const fs::path& target) {
    return claim_temporary(target, [](const fs::path& path) {
        return ::mkdir(path.c_str(), 0777) == 0 ? open_existing(path) : FileDescriptor();
    });
}

}  // namespace

fs::path real_path(const fs::path& path, std::error_code& error) {
    fs::path target = fs::absolute(path, error);
    if (!target.has_filename()) target = target.parent_path();
    // What is at `target` may be on its way from one name to another, so only a link there is followed.
    std::error_code ignored;
    if (fs::is_symlink(target, ignored) || target.filename() == "." || target.filename() == "..") {
        return fs::weakly_canonical(target, error);
    }
    return fs::weakly_canonical(target.parent_path(), error) / target.filename();
}

fs::path prepare_target(const fs::path& path) {
    std::error_code error;
    fs::path target = real_path(path, error);
    if (!error) fs::create_directories(target.parent_path(), error);
    if (error) throw_io_error("create", path, error.value());
    return target;
}

bool recover_target(const fs::path& target) {
    if (is_taken(target)) return true;
    const FileDescriptor parent = open_existing(target.parent_path());
    if (!parent) return false;
    const ScopedLock no_writer_between_renames(parent);
    if (is_taken(target)) return true;
    for (const fs::path& aside : siblings(target, kMovedAside)) {
        if (::rename(aside.c_str(), target.c_str()) == 0) {
            sync(parent, target.parent_path());
            return true;
        }
    }
    return is_taken(target);
}

void remove_leftovers(const fs::path& target) {
    const bool has_target = recover_target(target);
    for (const std::string_view kind : {kTemporary, kMovedAside}) {
        if (kind == kMovedAside && !has_target) continue;
        for (const fs::path& leftover : siblings(target, kind)) {
            const FileDescriptor descriptor = open_existing(leftover);
            if (descriptor && try_lock(descriptor) == Lock::kTaken && is_at(descriptor, leftover)) {
                remove_quietly(leftover);
            }
        }
    }
}

TemporaryFolder::TemporaryFolder(fs::path target) : target_(std::move(target)) {
    remove_leftovers(target_);
    Claim claim = claim_folder(target_);
    path_ = std::move(claim.path);
    descriptor_ = std::move(claim.descriptor);
}

TemporaryFolder::~TemporaryFolder() {
    if (!path_.empty()) remove_quietly(path_);
}

OutputFile TemporaryFolder::create(const fs::path& name) const {
    FileDescriptor file(
        ::openat(descriptor_.get(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (!file) throw_io_error("create", target_ / name, errno);
    return OutputFile(std::move(file), target_ / name);
}

void TemporaryFolder::replace_target(Replace how) {
    sync(descriptor_, target_);
    const FileDescriptor parent = open_folder(target_.parent_path());
    if (::rename(path_.c_str(), target_.c_str()) == 0) {  // nothing or an empty folder was there
        path_.clear();
    } else if (errno != ENOTEMPTY && errno != EEXIST) {
        throw_io_error("write", target_, errno);
    } else if (how != Replace::kSwapIfPossible || !swap_names(path_, target_)) {
        move_aside_and_replace(parent);
    }
    sync(parent, target_);  // only then may the destructor remove what was replaced
}

void TemporaryFolder::move_aside_and_replace(const FileDescriptor& parent) {
    const FileDescriptor old = open_folder(target_);
    try_lock(old);  // against those who remove leftovers
    const ScopedLock while_there_is_none(parent);
    int number = 0;
    while (is_taken(sibling(target_, kMovedAside, number))) ++number;
    const fs::path aside = sibling(target_, kMovedAside, number);
    if (::rename(target_.c_str(), aside.c_str()) != 0) throw_io_error("replace", target_, errno);
    if (::rename(path_.c_str(), target_.c_str()) != 0) {
        const int error_number = errno;
        ::rename(aside.c_str(), target_.c_str());
        throw_io_error("replace", target_, error_number);
    }
    path_ = aside;
}

TemporaryFile::TemporaryFile(fs::path target)
    : target_(std::move(target)), output_(FileDescriptor(), target_) {
    remove_leftovers(target_);
    Claim claim = claim_temporary(target_, [](const fs::path& path) {
        return FileDescriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    });
    path_ = std::move(claim.path);
    output_ = OutputFile(std::move(claim.descriptor), target_);
}

TemporaryFile::~TemporaryFile() {
    if (!path_.empty()) remove_quietly(path_);
}

void TemporaryFile::replace_target() {
    output_.sync();
    if (::rename(path_.c_str(), target_.c_str()) != 0) throw_io_error("write", target_, errno);
    path_.clear();
    sync(open_folder(target_.parent_path()), target_);
}

}  // namespace flashoptim::checkpoint
