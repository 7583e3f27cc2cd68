#include "step/cpu_count.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

namespace flashoptim {

namespace {

/// Empty where it cannot be read.
std::string text_of(const std::string& path) {
    std::string text;
    std::ifstream file(path, std::ios::binary);
    std::array<char, 4096> part{};
    while (file) {
        file.read(part.data(), part.size());
        text.append(part.data(), static_cast<std::size_t>(file.gcount()));
    }
    return text;
}

/// The parts of a text between separators, empty ones left out.
std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
    std::vector<std::string_view> parts;
    while (!text.empty()) {
        const auto end = std::min(text.find_first_of(separators), text.size());
        if (end != 0) parts.push_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return parts;
}
bool has_item(std::string_view comma_separated, std::string_view wanted) {
    const auto items = split(comma_separated, ",");
    return std::find(items.begin(), items.end(), wanted) != items.end();
}
std::optional<std::int64_t> number_in(std::string_view text) {
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return number;
}

/// "\040" is how the kernel writes a space in a path of its mount table.
std::string unescaped(std::string_view path) {
    std::string plain;
    for (std::size_t n = 0; n < path.size(); ++n) {
        unsigned code = 0;
        if (path[n] == '\\' && n + 3 < path.size() &&
            std::from_chars(&path[n + 1], &path[n + 4], code, 8).ptr == &path[n] + 4) {
            plain += static_cast<char>(code);
            n += 3;
        } else {
            plain += path[n];
        }
    }
    return plain;
}

/// A mounted hierarchy of control groups that may limit CPU time.
struct Hierarchy {
    bool is_v2 = false;
    std::string group_at_mount;  // the group that lies at the mount point
    std::string mount;
};

/// Lines of /proc/self/mountinfo, as proc(5) describes them.
std::vector<Hierarchy> mounted_hierarchies(std::string_view mountinfo) {
    std::vector<Hierarchy> found;
    for (const auto line : split(mountinfo, "\n")) {
        const auto middle = line.find(" - ");
        if (middle == std::string_view::npos) continue;
        const auto before = split(line.substr(0, middle), " "), after = split(line.substr(middle + 3), " ");
        if (before.size() < 5 || after.empty()) continue;
        const bool is_v2 = after[0] == "cgroup2";
        const bool is_v1 = after[0] == "cgroup" && after.size() > 2 && has_item(after[2], "cpu");
        if (is_v1 || is_v2) found.push_back({is_v2, unescaped(before[3]), unescaped(before[4])});
    }
    return found;
}

/// Where a group lies below the mount point; empty where it is that of the mount point, or lies outside of what is mounted, as
/// a container that has no namespace of its own for groups may see it.
std::string below_mount(std::string_view group, std::string_view group_at_mount) {
    if (group_at_mount != "/") {
        if (group.substr(0, group_at_mount.size()) != group_at_mount) return {};
        group.remove_prefix(group_at_mount.size());
        if (!group.empty() && group[0] != '/') return {};
    }
    std::string path;
    for (const auto part : split(group, "/")) {
        if (part == "..") return {};
        path.append("/").append(part);
    }
    return path;
}

/// 0 where the group has no quota.
int quota_of_group(const std::string& folder, bool is_v2) {
    std::optional<std::int64_t> quota, period;
    if (is_v2) {
        const auto text = text_of(folder + "/cpu.max");
        const auto parts = split(text, " \n");
        if (parts.size() == 2) {
            quota = number_in(parts[0]);  // none in "max"
            period = number_in(parts[1]);
        }
    } else {
        const auto number_of = [&](const char* name) {
            const auto text = text_of(folder + name);
            const auto parts = split(text, " \n");
            return parts.size() == 1 ? number_in(parts[0]) : std::nullopt;
        };
        quota = number_of("/cpu.cfs_quota_us");
        period = number_of("/cpu.cfs_period_us");
    }
    if (!quota || !period || *quota <= 0 || *period <= 0) return 0;
    const auto cpus = *quota / *period + (*quota % *period != 0 ? 1 : 0);
    return static_cast<int>(std::min<std::int64_t>(cpus, std::numeric_limits<int>::max()));
}

/// The smallest of a group and those above it, up to the mount point.
int smallest_quota(const std::string& mount, std::string below, bool is_v2) {
    int smallest = 0;
    for (;;) {
        const int quota = quota_of_group(mount + below, is_v2);
        if (quota != 0 && (smallest == 0 || quota < smallest)) smallest = quota;
        if (below.empty()) return smallest;
        below.erase(below.rfind('/'));
    }
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
    const auto groups = text_of(root + "/proc/self/cgroup");
    const auto mountinfo = text_of(root + "/proc/self/mountinfo");
    auto hierarchies = mounted_hierarchies(mountinfo);
    if (hierarchies.empty()) {  // where they usually lie
        hierarchies = {{true, "/", "/sys/fs/cgroup"},
                       {false, "/", "/sys/fs/cgroup/cpu"},
                       {false, "/", "/sys/fs/cgroup/cpu,cpuacct"}};
    }
    int smallest = 0;
    for (const auto line : split(groups, "\n")) {  // "4:cpu,cpuacct:/group" or, of v2, "0::/group"
        const auto first = line.find(':');
        const auto second = first == std::string_view::npos ? first : line.find(':', first + 1);
        if (second == std::string_view::npos) continue;
        const auto controllers = line.substr(first + 1, second - first - 1);
        const bool is_v2 = controllers.empty();
        if (!is_v2 && !has_item(controllers, "cpu")) continue;
        for (const auto& hierarchy : hierarchies) {
            if (hierarchy.is_v2 != is_v2) continue;
            const auto below = below_mount(line.substr(second + 1), hierarchy.group_at_mount);
            const int quota = smallest_quota(root + hierarchy.mount, below, is_v2);
            if (quota != 0 && (smallest == 0 || quota < smallest)) smallest = quota;
        }
    }
    return smallest;
}

int usable_cpus() {
    const int quota = quota_cpus(), cpus = affinity_cpus();
    return quota != 0 ? std::min(cpus, quota) : cpus;
}

int threads_of(const char* omp_num_threads) noexcept {
    if (omp_num_threads == nullptr) return 0;
    const long count = std::strtol(omp_num_threads, nullptr, 10);  // "4,2": the outermost level counts
    return count > 0 ? static_cast<int>(std::min<long>(count, kMostThreads)) : 0;
}

DefaultThreads default_threads() {
    if (const int chosen = threads_of(std::getenv("OMP_NUM_THREADS")); chosen != 0) return {chosen, true};
    return {std::min(usable_cpus(), kMostThreads), false};
}

}  // namespace flashoptim
