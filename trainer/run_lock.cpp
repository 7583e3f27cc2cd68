// Taking and releasing the lock on the folder of a run.
#include "trainer/run_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <ctime>
#include <string>
#include <system_error>

#include "flashoptim/error.h"
#include "flashoptim/system/atomic_path.h"
#include "flashoptim/system/file_lock.h"
#include "flashoptim/system/message.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOpening = "flashoptim: a run writes here: ";
constexpr int kFlags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;  // a child process must not go on holding it

// For people: in another container or on another machine the number may be somebody else's.
std::string description() {
    std::array<char, 256> host{};
    if (::gethostname(host.data(), host.size() - 1) != 0) host = {"?"};
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    std::array<char, 32> time{};
    if (::gmtime_r(&now, &utc) != nullptr)
        std::strftime(time.data(), time.size(), "%Y-%m-%d %H:%M:%S UTC", &utc);
    return "process " + std::to_string(::getpid()) + " on " + host.data() + " since " + time.data();
}

std::string content(const checkpoint::FileDescriptor& file) {
    std::array<char, 512> text{};
    const ssize_t count = ::pread(file.get(), text.data(), text.size(), 0);
    return {text.data(), count > 0 ? static_cast<std::size_t>(count) : 0};
}

[[noreturn]] void throw_in_the_way(const fs::path& file) {
    throw IoError(checkpoint::path_label(file) +
                  " is in the way: it is no run's lock; move it elsewhere or give another --out");
}

// Kept short, so that a process that removes the file again and one that opens it do not meet for long.
constexpr int kMostTries = 1000;

}  // namespace

RunLock::RunLock(const fs::path& folder) {
    std::error_code error;
    const fs::path place = checkpoint::real_path(folder, error);
    if (!error && fs::exists(place, error) && !fs::is_directory(place, error)) {
        throw IoError(checkpoint::path_label(folder) +
                      " is not a folder; give another --out, or move it elsewhere");
    }
    error.clear();
    file_ = place / kLockName;
    try {
        for (int tries = 0; tries < kMostTries; ++tries) {
            auto made = checkpoint::make_folders(place, error);
            made_folders_.insert(made_folders_.end(), made.begin(), made.end());
            if (error) checkpoint::throw_io_error("create", folder, error.value());
            if (open(folder / kLockName) && try_take(folder)) return;
        }
        throw IoError(checkpoint::path_label(folder) +
                      " cannot be locked: others make and remove it; give another --out");
    } catch (...) {
        descriptor_ = {};
        for (auto made = made_folders_.rbegin(); made != made_folders_.rend(); ++made) ::rmdir(made->c_str());
        throw;
    }
}

// false: the file or its folder went away meanwhile.
bool RunLock::open(const fs::path& shown) {
    const auto open_with = [this](int flags) {
        descriptor_ = checkpoint::FileDescriptor(::open(file_.c_str(), flags | kFlags, 0666));
        return static_cast<bool>(descriptor_);
    };
    is_new_ = open_with(O_RDWR | O_CREAT | O_EXCL);
    is_writable_ = is_new_;
    if (is_new_) return true;
    if (errno == EEXIST) {
        is_writable_ = open_with(O_RDWR);
        // That of another user, who lets this one write in the folder.
        if (is_writable_ || (errno == EACCES && open_with(O_RDONLY))) return true;
        if (errno == ELOOP || errno == EISDIR || errno == ENXIO) throw_in_the_way(shown);
    }
    if (errno == ENOENT) return false;
    checkpoint::throw_io_error("create", shown, errno);
}

// false: another process has removed the file after it was opened here.
bool RunLock::try_take(const fs::path& shown) {
    struct stat status{};
    if (::fstat(descriptor_.get(), &status) != 0 || !S_ISREG(status.st_mode))
        throw_in_the_way(shown / kLockName);
    const std::string text = content(descriptor_);
    if (!text.empty() && !text.starts_with(kOpening)) throw_in_the_way(shown / kLockName);
    const checkpoint::Lock lock = checkpoint::try_lock(descriptor_);
    if (lock == checkpoint::Lock::kHeldByOther) {
        std::string holder = text.empty() ? "" : text.substr(kOpening.size());
        holder = checkpoint::printable(holder.substr(0, holder.find('\n')));
        throw IoError(checkpoint::path_label(shown) + " is in use by another run" +
                      (holder.empty() ? "" : " (" + holder + ")") +
                      "; wait for it, stop it, or give another --out");
    }
    is_exclusive_ = lock == checkpoint::Lock::kTaken;
    return checkpoint::is_at(descriptor_, file_);
}

void RunLock::keep() {
    is_kept_ = true;
    if (!is_writable_ || ::ftruncate(descriptor_.get(), 0) != 0) return;
    has_holder_ = true;
    const std::string line = std::string(kOpening) + description() + "\n";
    // On a full disk the file stays empty: the lock counts.
    [[maybe_unused]] const ssize_t written = ::pwrite(descriptor_.get(), line.data(), line.size(), 0);
}

RunLock::~RunLock() {
    if (has_holder_) {
        [[maybe_unused]] const int result = ::ftruncate(descriptor_.get(), 0);  // nobody writes here any more
    }
    if (is_kept_) return;
    if (is_new_) ::unlink(file_.c_str());  // still locked: whoever has it open sees that it is gone
    for (auto made = made_folders_.rbegin(); made != made_folders_.rend(); ++made) ::rmdir(made->c_str());
}

}  // namespace flashoptim::trainer
