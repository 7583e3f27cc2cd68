// The lock on the folder of a run. Only the process that holds it writes there. The system releases the lock
// when the process dies. Knows nothing else about the folder.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "flashoptim/system/file_io.h"

namespace flashoptim::trainer {

/// The lock file in the folder. The file stays as long as the run exists; only the lock on it shows that a
/// process is writing.
inline constexpr std::string_view kLockName = ".flashoptim-run.lock";

class RunLock {
public:
    /// Makes `folder` if it is missing, and locks it. Throws IoError if another process holds the lock (and
    /// names it if the file tells), if the lock file's name is taken, or if the folder cannot be written.
    explicit RunLock(const std::filesystem::path& folder);
    RunLock(const RunLock&) = delete;
    RunLock& operator=(const RunLock&) = delete;
    ~RunLock();

    /// Keeps the lock file, which names the holder. Without this call the destructor removes everything that
    /// the constructor made and restores an existing file, so that a refused run leaves nothing behind.
    void keep();
    /// Undoes keep().
    void release() { is_kept_ = false; }

    /// False if the file system has no locks, so that other processes are not kept out.
    bool is_exclusive() const { return is_exclusive_; }

private:
    bool open(const std::filesystem::path& shown);
    bool try_take(const std::filesystem::path& shown);

    std::filesystem::path file_;
    std::vector<std::filesystem::path> made_folders_;  // outermost first
    checkpoint::FileDescriptor descriptor_;
    bool is_new_ = false, is_writable_ = true, is_exclusive_ = true, is_kept_ = false, has_holder_ = false;
};

}  // namespace flashoptim::trainer
