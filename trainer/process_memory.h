// The memory of this process as the operating system reports it. Estimates nothing.
#pragma once

#include <cstdint>

namespace flashoptim::trainer {

/// The resident memory of the calling process in bytes. 0 if the system does not report it (no /proc).
struct ProcessMemory {
    std::int64_t resident = 0;       ///< now (VmRSS)
    std::int64_t peak_resident = 0;  ///< the peak since the process started (VmHWM)
};

ProcessMemory process_memory();

}  // namespace flashoptim::trainer
