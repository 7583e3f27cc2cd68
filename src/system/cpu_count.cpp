#include "flashoptim/system/cpu_count.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <thread>

#include "flashoptim/system/control_groups.h"

namespace flashoptim {

namespace {

/// The quota of a group in CPUs, rounded up; 0 if it has none.
int quota_of_group(const std::string& folder, bool is_v2) {
    std::optional<std::int64_t> quota, period;
    if (is_v2) {
        const auto text = read_text(folder + "/cpu.max");
        const auto parts = split_text(text, " \n");
        if (parts.size() == 2) {
            quota = whole_number_in(parts[0]);  // empty for "max"
            period = whole_number_in(parts[1]);
        }
    } else {
        const auto number_of = [&](const char* name) {
            const auto text = read_text(folder + name);
            const auto parts = split_text(text, " \n");
            return parts.size() == 1 ? whole_number_in(parts[0]) : std::nullopt;
        };
        quota = number_of("/cpu.cfs_quota_us");
        period = number_of("/cpu.cfs_period_us");
    }
    if (!quota || !period || *quota <= 0 || *period <= 0) return 0;
    const auto cpus = *quota / *period + (*quota % *period != 0 ? 1 : 0);
    return static_cast<int>(std::min<std::int64_t>(cpus, std::numeric_limits<int>::max()));
}

}  // namespace

Affinity Affinity::of_this_thread() noexcept {
    Affinity affinity;
#if defined(__linux__)
    if (::sched_getaffinity(0, sizeof affinity.set_, affinity.set_.data()) != 0) return {};
#endif
    return affinity;
}

void Affinity::confine_this_thread() const noexcept {
#if defined(__linux__)
    (void)::sched_setaffinity(0, sizeof set_, set_.data());
#endif
}

int Affinity::cpus() const noexcept {
#if defined(__linux__)
    if (const int count = CPU_COUNT_S(sizeof set_, set_.data()); count > 0) return count;
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

bool Affinity::operator==([[maybe_unused]] const Affinity& other) const noexcept {
#if defined(__linux__)
    return CPU_EQUAL_S(sizeof set_, set_.data(), other.set_.data()) != 0;
#else
    return true;
#endif
}

int affinity_cpus() noexcept { return Affinity::of_this_thread().cpus(); }

int quota_cpus(const std::string& root) {
    int smallest = 0;
    for (const auto& group : control_groups("cpu", root)) {
        const int quota = quota_of_group(group.folder, group.is_v2);
        if (quota != 0 && (smallest == 0 || quota < smallest)) smallest = quota;
    }
    return smallest;
}

int usable_cpus() {
    const int quota = quota_cpus(), cpus = affinity_cpus();
    return quota != 0 ? std::min(cpus, quota) : cpus;
}

int threads_of(const char* omp_num_threads) noexcept {
    if (omp_num_threads == nullptr) return 0;
    const long count = std::strtol(omp_num_threads, nullptr, 10);  // "4,2": the outermost level
    return count > 0 ? static_cast<int>(std::min<long>(count, kMostThreads)) : 0;
}

DefaultThreads default_threads() {
    if (const int chosen = threads_of(std::getenv("OMP_NUM_THREADS")); chosen != 0) return {chosen, true};
    return {std::min(usable_cpus(), kMostThreads), false};
}

}  // namespace flashoptim
