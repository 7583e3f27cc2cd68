// Locks that the system releases when their holder dies. A process shows with them that it is alive.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/system/file_io.h"

namespace flashoptim::checkpoint {

enum class Lock : std::uint8_t { kTaken, kHeldByOther, kUnsupported };

/// Locks the open file or folder until the descriptor is closed. Does not block.
Lock try_lock(const FileDescriptor& descriptor);

/// The lock on a target's parent while a folder replaces another. A writer holds it only for that long, and
/// waiting for it is limited in time, because other programs may lock the folder for their own reasons. If
/// folders cannot be locked (NFS), it waits for the time that two renames take.
class ScopedLock {
public:
    /// `folder` must outlive the lock. If it is empty, nothing is locked.
    explicit ScopedLock(const FileDescriptor& folder);
    ScopedLock(const ScopedLock&) = delete;
    ScopedLock& operator=(const ScopedLock&) = delete;
    ~ScopedLock();

private:
    const FileDescriptor& folder_;
};

}  // namespace flashoptim::checkpoint

#endif
