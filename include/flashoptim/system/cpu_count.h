// The number of CPUs that this process may use at once, from its affinity, the quotas of its control groups
// and OMP_NUM_THREADS.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <array>
#include <string>

#if defined(__linux__)
#include <sched.h>
#endif

namespace flashoptim {

/// The most threads of a step, whatever the caller asks for. A process that starts all threads that the
/// system allows leaves none for others or for itself.
inline constexpr int kMostThreads = 1024;

/// The CPUs on which a thread may run, as set by taskset and cpusets.
class Affinity {
public:
    static Affinity of_this_thread() noexcept;
    /// Sets the affinity of the calling thread. Does nothing if the system has no affinities or refuses.
    void confine_this_thread() const noexcept;
    /// Number of CPUs, at least 1.
    [[nodiscard]] int cpus() const noexcept;
    bool operator==(const Affinity& other) const noexcept;

private:
#if defined(__linux__)
    std::array<cpu_set_t, 16> set_{};  // large enough: the kernel refuses a set smaller than its own
#endif
};

/// The number of CPUs on which the calling thread may run, at least 1.
int affinity_cpus() noexcept;

/// The smallest CPU quota of this process's control groups and of those above them (cgroup v2 cpu.max, v1
/// cpu.cfs_quota_us), rounded up to whole CPUs; 0 if there is none. `root` is prepended to all system paths.
/// @throws std::bad_alloc
int quota_cpus(const std::string& root = {});

/// The number of CPUs that affinity and quotas allow, at least 1. @throws std::bad_alloc
int usable_cpus();

/// The value of OMP_NUM_THREADS: the first number of "4" or "4,2", at most kMostThreads. 0 for null and for
/// text that is not a positive number.
int threads_of(const char* omp_num_threads) noexcept;

/// The number of threads of a step if the caller gives none.
struct DefaultThreads {
    int count = 1;
    bool is_chosen = false;  // from OMP_NUM_THREADS; else from usable_cpus()
};
/// Reads the system in each call. @throws std::bad_alloc
DefaultThreads default_threads();

}  // namespace flashoptim

#endif
