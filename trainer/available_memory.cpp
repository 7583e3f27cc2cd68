// Reads /proc/meminfo, the files of the memory controller and the limits of the process.
#include "trainer/available_memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <limits>
#include <string_view>

#include "flashoptim/system/control_groups.h"

namespace flashoptim::trainer {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
// Control groups of version 1 report "no limit" as a number near 2^63.
constexpr std::int64_t kNoLimit = std::int64_t{1} << 60;

std::int64_t sum(std::int64_t a, std::int64_t b) { return a > kMost - b ? kMost : a + b; }
std::int64_t left(std::int64_t limit, std::int64_t used) { return used >= limit ? 0 : limit - used; }

/// Reads a file that contains one number. Empty for "max" and for a missing file.
std::optional<std::int64_t> number_in_file(const std::string& path) {
    const std::string text = read_text(path);
    const auto words = split_text(text, " \n");
    const auto number = words.size() == 1 ? whole_number_in(words[0]) : std::nullopt;
    return number && *number >= 0 ? number : std::nullopt;
}

/// Lines of a name and a number: "MemAvailable:  123 kB", "total_cache 4096", "size  4  8192" (column 1 is a
/// type there).
class Table {
public:
    explicit Table(const std::string& path, std::size_t column = 1)
        : text_(read_text(path)), column_(column) {}

    [[nodiscard]] std::optional<std::int64_t> number(std::string_view name) const {
        for (const auto line : split_text(text_, "\n")) {
            const auto words = split_text(line, " \t");
            if (words.size() <= column_ || words[0] != name) continue;
            const auto number = whole_number_in(words[column_]);
            const std::int64_t unit = words.size() > column_ + 1 && words[column_ + 1] == "kB" ? 1024 : 1;
            if (!number || *number < 0) return std::nullopt;
            return *number > kMost / unit ? kMost : *number * unit;
        }
        return std::nullopt;
    }
    [[nodiscard]] std::int64_t number_or_0(std::string_view name) const { return number(name).value_or(0); }

private:
    std::string text_;
    std::size_t column_;
};

/// ZFS frees its cache on demand, down to a minimum, but the system does not count it as available.
std::int64_t zfs_cache(const std::string& root) {
    const Table cache(root + "/proc/spl/kstat/zfs/arcstats", 2);
    return left(cache.number_or_0("size"), cache.number_or_0("c_min"));
}

std::optional<std::int64_t> left_in_system(const Table& memory, const std::string& root) {
    auto available = memory.number("MemAvailable:");
    if (!available) available = memory.number("MemTotal:");  // before Linux 3.14
    if (!available) return std::nullopt;
    const std::int64_t with_swap = sum(sum(*available, memory.number_or_0("SwapFree:")), zfs_cache(root));
    // 2: memory that is promised counts, whether it is used or not.
    const auto limit = memory.number("CommitLimit:"), committed = memory.number("Committed_AS:");
    if (number_in_file(root + "/proc/sys/vm/overcommit_memory") == 2 && limit && committed) {
        return std::min(with_swap, left(*limit, *committed));
    }
    return with_swap;
}

/// Empty if the group has no limit.
std::optional<std::int64_t> left_in_group(const ControlGroup& group, std::int64_t swap) {
    const auto number = [&](const char* name) { return number_in_file(group.folder + "/" + name); };
    const auto limit = number(group.is_v2 ? "memory.max" : "memory.limit_in_bytes");
    if (!limit || *limit >= kNoLimit) return std::nullopt;
    const Table statistics(group.folder + "/memory.stat");
    if (group.is_v2) {
        const auto reclaimable = sum(left(statistics.number_or_0("file"), statistics.number_or_0("shmem")),
                                     statistics.number_or_0("slab_reclaimable"));
        const auto most_swap = number("memory.swap.max");
        const auto own_swap =
            most_swap ? std::min(swap, left(*most_swap, number("memory.swap.current").value_or(0))) : swap;
        const auto used = left(number("memory.current").value_or(0), reclaimable);
        return sum(left(*limit, used), own_swap);
    }
    // The kernel's memory may include caches that it can free, but their size is not reported.
    const auto reclaimable =
        sum(left(statistics.number_or_0("total_cache"), statistics.number_or_0("total_shmem")),
            number("memory.kmem.usage_in_bytes").value_or(0));
    const auto of = [&](std::int64_t most, const char* usage) {
        return left(most, left(number(usage).value_or(0), reclaimable));
    };
    const auto memory = sum(of(*limit, "memory.usage_in_bytes"), swap);
    const auto both = number("memory.memsw.limit_in_bytes");
    if (!both || *both >= kNoLimit) return memory;
    return std::min(memory, of(*both, "memory.memsw.usage_in_bytes"));
}

/// In version 1 a group can be set up so that its limit does not apply to the groups below it.
bool holds_for_groups_below(const ControlGroup& group) {
    return group.is_v2 || number_in_file(group.folder + "/memory.use_hierarchy").value_or(1) != 0;
}

}  // namespace

ProcessLimits process_limits() {
    const auto limit = [](auto resource) -> std::optional<std::int64_t> {
        struct rlimit set{};
        if (::getrlimit(resource, &set) != 0 || set.rlim_cur == RLIM_INFINITY) return std::nullopt;
        return static_cast<std::int64_t>(std::min<rlim_t>(set.rlim_cur, kMost));
    };
    return {limit(RLIMIT_AS), limit(RLIMIT_DATA)};
}

std::optional<AvailableMemory> available_memory(const ProcessLimits& limits, const std::string& root) {
    std::optional<AvailableMemory> smallest;
    const auto take = [&](std::optional<std::int64_t> bytes, const std::string& bound) {
        if (bytes && (!smallest || *bytes < smallest->bytes)) smallest = {*bytes, bound};
    };
    const Table memory(root + "/proc/meminfo");
    take(left_in_system(memory, root), "the system");

    const auto groups = control_groups("memory", root);
    for (std::size_t n = 0; n < groups.size(); ++n) {
        // A group comes before its parents, whose paths are prefixes of its own.
        const bool is_above = n > 0 && groups[n - 1].is_v2 == groups[n].is_v2 &&
                              groups[n - 1].folder.compare(0, groups[n].folder.size(), groups[n].folder) == 0;
        if (is_above && !holds_for_groups_below(groups[n])) continue;
        take(left_in_group(groups[n], memory.number_or_0("SwapFree:")),
             "the control group " + groups[n].folder.substr(root.size()));
    }

    const Table status(root + "/proc/self/status");
    const auto below = [&](std::optional<std::int64_t> limit, std::string_view used) {
        return limit ? std::optional(left(*limit, status.number_or_0(used))) : std::nullopt;
    };
    take(below(limits.address_space, "VmSize:"), "ulimit -v");
    take(below(limits.data, "VmData:"), "ulimit -d");
    return smallest;
}

}  // namespace flashoptim::trainer
