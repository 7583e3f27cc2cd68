// Locks that the system releases when their holder dies: how a process shows that it lives.
#pragma once

#include <cstdint>

#include "file_io.h"

namespace flashoptim::checkpoint {

enum class Lock : std::uint8_t { kTaken, kHeldByOther, kUnsupported };

/// Locks what is open as `descriptor`, until it is closed. Does not block.
Lock try_lock(const FileDescriptor& descriptor);

/// The lock on a target's parent under which a folder takes the place of another. It is held for no longer
/// than that, so waiting for it has an end: others may lock the folder for reasons of their own. Where
/// folders cannot be locked (NFS) a writer is given the time that two renames take.
class ScopedLock {
public:
    /// `folder` outlives this. Without one there is nothing to wait for.
    explicit ScopedLock(const FileDescriptor& folder);
    ScopedLock(const ScopedLock&) = delete;
    ScopedLock& operator=(const ScopedLock&) = delete;
    ~ScopedLock();

private:
    const FileDescriptor& folder_;
};

}  // namespace flashoptim::checkpoint
