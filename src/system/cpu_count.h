// How many CPUs this process may use at once: affinity, the quotas of its control
// groups, and what the user says.
#pragma once

#include <array>
#include <string>

#if defined(__linux__)
#include <sched.h>
#endif

namespace flashoptim {

/// Of a step, whatever is asked for: a process that starts all threads that the system has leaves none to
/// others, itself among them.
inline constexpr int kMostThreads = 1024;

/// The CPUs that a thread may run on, as taskset and cpusets leave them.
class Affinity {
public:
    static Affinity of_this_thread() noexcept;
    /// Of the calling thread from now on. Nothing happens where the system has no such thing or refuses it.
    void confine_this_thread() const noexcept;
    /// At least 1.
    [[nodiscard]] int cpus() const noexcept;
    bool operator==(const Affinity& other) const noexcept;

private:
#if defined(__linux__)
    std::array<cpu_set_t, 16> set_{};  // the kernel refuses one that is smaller than its own
#endif
};

/// CPUs that the calling thread may run on; at least 1.
int affinity_cpus() noexcept;

/// The smallest CPU quota of this process's control groups and of those above them (cgroup v2
/// cpu.max, v1 cpu.cfs_quota_us), rounded up to whole CPUs; 0 where there is none. `root` is what all
/// paths of the system begin with.
/// @throws std::bad_alloc
int quota_cpus(const std::string& root = {});

/// CPUs that this process may use at once: what affinity and quotas leave. At least 1. @throws std::bad_alloc
int usable_cpus();

/// What OMP_NUM_THREADS says: the first number of "4" or "4,2", at most kMostThreads; 0 for null and for
/// what is not a positive number.
int threads_of(const char* omp_num_threads) noexcept;

/// Threads of a step where nobody chose a number.
struct DefaultThreads {
    int count = 1;
    bool is_chosen = false;  // by OMP_NUM_THREADS; otherwise usable_cpus()
};
/// Read from the system in each call. @throws std::bad_alloc
DefaultThreads default_threads();

}  // namespace flashoptim
