// Locks that the system releases when their holder dies.
#include "flashoptim/system/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <chrono>
#include <thread>

namespace flashoptim::checkpoint {

namespace {

// Some network and user-space file systems have only range locks. This one belongs to the open file, as that
// of flock does.
Lock try_range_lock([[maybe_unused]] const FileDescriptor& descriptor) {
#ifdef F_OFD_SETLK
    struct flock whole_file{};
    whole_file.l_type = F_WRLCK;
    whole_file.l_whence = SEEK_SET;
    while (::fcntl(descriptor.get(), F_OFD_SETLK, &whole_file) != 0) {
        if (errno == EAGAIN || errno == EACCES) return Lock::kHeldByOther;
        if (errno != EINTR) return Lock::kUnsupported;
    }
    return Lock::kTaken;
#else
    return Lock::kUnsupported;
#endif
}

}  // namespace

Lock try_lock(const FileDescriptor& descriptor) {
    while (::flock(descriptor.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) return Lock::kHeldByOther;
        if (errno != EINTR) return try_range_lock(descriptor);
    }
    return Lock::kTaken;
}

ScopedLock::ScopedLock(const FileDescriptor& folder) : folder_(folder) {
    constexpr int kMostTriesWhileHeld = 1000, kTriesWithoutLock = 40;
    for (int tries = 0; folder && tries < kMostTriesWhileHeld; ++tries) {
        const Lock state = try_lock(folder);
        if (state == Lock::kTaken || (state == Lock::kUnsupported && tries == kTriesWithoutLock)) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

ScopedLock::~ScopedLock() {
    if (folder_) ::flock(folder_.get(), LOCK_UN);
}

}  // namespace flashoptim::checkpoint
