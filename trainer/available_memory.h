// How much more memory this process can allocate, as far as the system reports it. Does not know who needs
// it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace flashoptim::trainer {

/// The limits of this process that setrlimit(2) sets, in bytes. Empty: no limit.
struct ProcessLimits {
    std::optional<std::int64_t> address_space;  ///< RLIMIT_AS, `ulimit -v`
    std::optional<std::int64_t> data;           ///< RLIMIT_DATA, `ulimit -d`
};
ProcessLimits process_limits();

/// The smallest of all bounds.
struct AvailableMemory {
    std::int64_t bytes = 0;
    std::string
        bound;  ///< what sets the bound: "the system", "the control group /sys/fs/cgroup/job" or "ulimit -v"
};

/// Returns the smallest of: the system's free memory (MemAvailable and swap, or the commit limit if the
/// system does not overcommit), the rest of the memory limits of this process's control groups and their
/// parents (v1 and v2; page cache counts as free), and the rest below `limits`. Never too small: if a value
/// can be read in two ways, the larger counts. Empty if the system reports nothing. `root` is put before all
/// system paths.
std::optional<AvailableMemory> available_memory(const ProcessLimits& limits = process_limits(),
                                                const std::string& root = {});

}  // namespace flashoptim::trainer
