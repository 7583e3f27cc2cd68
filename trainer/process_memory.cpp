// Reading of /proc/self/status. Never estimates anything.
#include "trainer/process_memory.h"

#include <fstream>
#include <sstream>
#include <string>

namespace flashoptim::trainer {

ProcessMemory process_memory() {
    constexpr std::int64_t kKibibyte = 1024;
    ProcessMemory memory;
    std::ifstream status("/proc/self/status");
    std::string line;
    while (std::getline(status, line)) {
        std::istringstream words(line);
        std::string key;
        std::int64_t kibibytes = 0;
        if (!(words >> key >> kibibytes)) {
            continue;
        }
        if (key == "VmRSS:") {
            memory.resident = kibibytes * kKibibyte;
        } else if (key == "VmHWM:") {
            memory.peak_resident = kibibytes * kKibibyte;
        }
    }
    return memory;
}

}  // namespace flashoptim::trainer
