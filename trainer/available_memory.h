// How much memory this process can still take, as far as the system says. Knows nothing of what needs it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace flashoptim::trainer {

/// Limits of this process that setrlimit(2) sets, in bytes; nothing where there is none.
struct ProcessLimits {
    std::optional<std::int64_t> address_space;  ///< RLIMIT_AS, `ulimit -v`
    std::optional<std::int64_t> data;           ///< RLIMIT_DATA, `ulimit -d`
};
ProcessLimits process_limits();

/// The tightest of all bounds.
struct AvailableMemory {
    std::int64_t bytes = 0;
    std::string
        bound;  ///< what sets it, for people: "the system", "the control group /sys/fs/cgroup/job", "ulimit -v"
};

/// The smallest of: what the system has (MemAvailable and swap; the commit limit where it refuses to
/// overcommit), what is left in the control groups of this process and those above (v1 and v2; their page
/// cache can be taken back), and what is left below `limits`. Never too little: where two readings are
/// possible it takes the larger. Nothing where the system says nothing. `root` is what all paths of the
/// system begin with.
std::optional<AvailableMemory> available_memory(const ProcessLimits& limits = process_limits(),
                                                const std::string& root = {});

}  // namespace flashoptim::trainer
