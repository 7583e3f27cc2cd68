// The lock on the folder of a run: whoever holds it is the one process that writes there. The system releases
// it when that process dies. Knows nothing of what else lies in the folder.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "system/file_io.h"

namespace flashoptim::trainer {

/// Its file in the folder. The file is there as long as the run; only the lock on it says that somebody
/// writes.
inline constexpr std::string_view kLockName = ".flashoptim-run.lock";

class RunLock {
public:
    /// Makes `folder` where it is missing, and takes its lock. Throws IoError: another process holds it, as
    /// far as its file tells which; something else has the file's name; the folder cannot be written.
    explicit RunLock(const std::filesystem::path& folder);
    RunLock(const RunLock&) = delete;
    RunLock& operator=(const RunLock&) = delete;
    ~RunLock();

    /// The file stays and says who holds the lock. Without this call all that the lock made goes with it, and
    /// a file that was there is as it was: a refused run leaves nothing behind.
    void keep();
    /// Takes `keep` back.
    void release() { is_kept_ = false; }

    /// false: the file system has no locks, and nothing keeps other processes out.
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
