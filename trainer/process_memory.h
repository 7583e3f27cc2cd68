// What the operating system says of this process's memory. Never estimates anything.
#pragma once

#include <cstdint>

namespace flashoptim::trainer {

/// Resident memory of the calling process in bytes; 0 where the system does not say (/proc is missing).
struct ProcessMemory {
    std::int64_t resident = 0;       ///< now (VmRSS)
    std::int64_t peak_resident = 0;  ///< largest since the process began (VmHWM)
};

ProcessMemory process_memory();

}  // namespace flashoptim::trainer
