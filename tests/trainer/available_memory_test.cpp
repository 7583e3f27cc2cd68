// How much memory is left, from made-up systems. If these fail, a run that would fit is refused, or one that
// does not is killed hours later.
#include "trainer/available_memory.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "temporary_folder.h"

namespace flashoptim::trainer {
namespace {

using Files = std::map<std::string, std::string>;
constexpr std::int64_t kKiB = 1024, kMiB = 1024 * kKiB;

struct Case {
    std::string name;
    Files files;
    std::optional<std::int64_t> expected;
    std::string bound;
    ProcessLimits limits = {};
};

const char* const kV2Mount =
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
const char* const kV1Mount = "24 23 0:21 / /sys/fs/cgroup/memory rw shared:8 - cgroup cgroup rw,memory\n";

std::vector<Case> cases() {
    const std::string self = "proc/self/cgroup", mounts = "proc/self/mountinfo", info = "proc/meminfo";
    const std::string v2 = "sys/fs/cgroup", v1 = "sys/fs/cgroup/memory";
    const std::string plenty =
        "MemTotal: 2097152 kB\nMemFree: 1 kB\nMemAvailable:    1048576 kB\nSwapFree: 0 kB\n";
    const auto v2_of = [&](Files files) {
        files.insert({{self, "0::/a\n"}, {mounts, kV2Mount}, {info, plenty}});
        return files;
    };
    const auto v1_of = [&](Files files) {
        files.insert({{self, "4:memory:/a\n3:cpu:/b\n"}, {mounts, kV1Mount}, {info, plenty}});
        return files;
    };
    const auto info_of = [&](const std::string& text) { return Files{{info, text}}; };
    const std::int64_t all = 1024 * kMiB;
    const std::string system = "the system", group2 = "the control group /sys/fs/cgroup/a",
                      group1 = "the control group /sys/fs/cgroup/memory/a";
    return {
        {"no files at all", {}, std::nullopt, ""},
        {"what is available", info_of(plenty), all, system},
        {"swap counts", info_of("MemAvailable: 100 kB\nSwapTotal: 999 kB\nSwapFree: 50 kB\n"), 150 * kKiB,
         system},
        {"an old kernel", info_of("MemTotal: 100 kB\nMemFree: 1 kB\n"), 100 * kKiB, system},
        {"words", info_of("MemAvailable: many kB\n"), std::nullopt, ""},
        {"negative", info_of("MemAvailable: -5 kB\n"), std::nullopt, ""},
        {"more than 64 bits", info_of("MemAvailable: 99999999999999999999 kB\n"), std::nullopt, ""},
        {"more than 64 bits of bytes", info_of("MemAvailable: 9223372036854775807 kB\n"), INT64_MAX, system},
        {"a name that only begins so", info_of("MemAvailableX: 1 kB\nMemTotal: 3 kB\n"), 3 * kKiB, system},
        {"overcommit is refused",
         {{info, plenty + "CommitLimit: 4096 kB\nCommitted_AS: 1024 kB\n"},
          {"proc/sys/vm/overcommit_memory", "2\n"}},
         3072 * kKiB,
         system},
        {"more is promised than the limit",
         {{info, plenty + "CommitLimit: 4096 kB\nCommitted_AS: 8192 kB\n"},
          {"proc/sys/vm/overcommit_memory", "2\n"}},
         0,
         system},
        {"overcommit is usual",
         {{info, plenty + "CommitLimit: 4096 kB\nCommitted_AS: 1024 kB\n"},
          {"proc/sys/vm/overcommit_memory", "0\n"}},
         all,
         system},
        {"the cache of ZFS",
         {{info, "MemAvailable: 1024 kB\n"},
          {"proc/spl/kstat/zfs/arcstats",
           "13 1 0x01\nname type data\nhits  4 77\nc_min  4 1048576\nsize  4 3145728\n"}},
         3 * kMiB,
         system},
        {"v2: limit and use",
         v2_of({{v2 + "/a/memory.max", "104857600\n"}, {v2 + "/a/memory.current", "4194304\n"}}), 96 * kMiB,
         group2},
        {"v2: no limit", v2_of({{v2 + "/a/memory.max", "max\n"}, {v2 + "/a/memory.current", "4194304\n"}}),
         all, system},
        {"v2: more is used than the limit",
         v2_of({{v2 + "/a/memory.max", "4096\n"}, {v2 + "/a/memory.current", "8192\n"}}), 0, group2},
        {"v2: limit 0", v2_of({{v2 + "/a/memory.max", "0\n"}}), 0, group2},
        {"v2: page cache can be taken back, memory files cannot",
         v2_of({{v2 + "/a/memory.max", "104857600\n"},
                {v2 + "/a/memory.current", "83886080\n"},
                {v2 + "/a/memory.stat",
                 "anon 20971520\nfile 62914560\nshmem 10485760\nslab_reclaimable 1048576\n"}}),
         (100 - 80 + 60 - 10 + 1) * kMiB, group2},
        {"v2: cache beyond what is used now",
         v2_of({{v2 + "/a/memory.max", "104857600\n"},
                {v2 + "/a/memory.current", "1\n"},
                {v2 + "/a/memory.stat", "file 62914560\n"}}),
         100 * kMiB, group2},
        {"v2: swap of the group",
         Files{{self, "0::/a\n"},
               {mounts, kV2Mount},
               {info, "MemAvailable: 1048576 kB\nSwapFree: 102400 kB\n"},
               {v2 + "/a/memory.max", "104857600\n"},
               {v2 + "/a/memory.swap.max", "10485760\n"},
               {v2 + "/a/memory.swap.current", "1048576\n"}},
         109 * kMiB, group2},
        {"v2: swap of the group without a limit",
         Files{{self, "0::/a\n"},
               {mounts, kV2Mount},
               {info, "MemAvailable: 1048576 kB\nSwapFree: 102400 kB\n"},
               {v2 + "/a/memory.max", "104857600\n"},
               {v2 + "/a/memory.swap.max", "max\n"}},
         200 * kMiB, group2},
        {"v2: the smallest of the groups above",
         Files{{self, "0::/a/b/c\n"},
               {mounts, kV2Mount},
               {info, plenty},
               {v2 + "/a/memory.max", "41943040\n"},
               {v2 + "/a/memory.current", "1048576\n"},
               {v2 + "/a/b/memory.max", "max\n"},
               {v2 + "/a/b/c/memory.max", "104857600\n"}},
         39 * kMiB, group2},
        {"v2: a namespace of its own, as containers have",
         Files{{self, "0::/\n"}, {mounts, kV2Mount}, {info, plenty}, {v2 + "/memory.max", "1048576\n"}}, kMiB,
         "the control group /sys/fs/cgroup"},
        {"v2: words, empty, two numbers", v2_of({{v2 + "/a/memory.max", "much\n"}, {v2 + "/memory.max", ""}}),
         all, system},
        {"v1: limit and use",
         v1_of({{v1 + "/a/memory.limit_in_bytes", "104857600\n"},
                {v1 + "/a/memory.usage_in_bytes", "4194304\n"}}),
         96 * kMiB, group1},
        {"v1: no limit, as kernels say it",
         v1_of({{v1 + "/a/memory.limit_in_bytes", "9223372036854771712\n"},
                {v1 + "/a/memory.usage_in_bytes", "4194304\n"}}),
         all, system},
        {"v1: no limit, of 64 bits", v1_of({{v1 + "/a/memory.limit_in_bytes", "18446744073709551615\n"}}),
         all, system},
        {"v1: no limit, with large pages",
         v1_of({{v1 + "/a/memory.limit_in_bytes", "9223372036854710272\n"}}), all, system},
        {"v1: page cache and the kernel's own can be taken back",
         v1_of({{v1 + "/a/memory.limit_in_bytes", "104857600\n"},
                {v1 + "/a/memory.usage_in_bytes", "83886080\n"},
                {v1 + "/a/memory.kmem.usage_in_bytes", "1048576\n"},
                {v1 + "/a/memory.stat", "cache 1\ntotal_cache 62914560\ntotal_shmem 10485760\n"}}),
         (100 - 80 + 60 - 10 + 1) * kMiB, group1},
        {"v1: memory and swap together",
         Files{{self, "4:memory:/a\n"},
               {mounts, kV1Mount},
               {info, "MemAvailable: 1048576 kB\nSwapFree: 102400 kB\n"},
               {v1 + "/a/memory.limit_in_bytes", "104857600\n"},
               {v1 + "/a/memory.memsw.limit_in_bytes", "115343360\n"},
               {v1 + "/a/memory.memsw.usage_in_bytes", "1048576\n"}},
         109 * kMiB, group1},
        {"v1: swap without a limit of both",
         Files{{self, "4:memory:/a\n"},
               {mounts, kV1Mount},
               {info, "MemAvailable: 1048576 kB\nSwapFree: 102400 kB\n"},
               {v1 + "/a/memory.limit_in_bytes", "104857600\n"}},
         200 * kMiB, group1},
        {"v1: a group above",
         Files{{self, "4:memory:/a/b\n"},
               {mounts, kV1Mount},
               {info, plenty},
               {v1 + "/a/memory.limit_in_bytes", "1048576\n"},
               {v1 + "/a/memory.use_hierarchy", "1\n"}},
         kMiB, group1},
        {"v1: a group above whose limit is its own",
         Files{{self, "4:memory:/a/b\n"},
               {mounts, kV1Mount},
               {info, plenty},
               {v1 + "/a/memory.limit_in_bytes", "1048576\n"},
               {v1 + "/a/memory.use_hierarchy", "0\n"}},
         all, system},
        {"v1: a container that sees its host's groups",
         Files{{self, "4:memory:/docker/id\n"},
               {mounts, "25 23 0:22 /docker/id /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"},
               {info, plenty},
               {v1 + "/memory.limit_in_bytes", "2097152\n"}},
         2 * kMiB, "the control group /sys/fs/cgroup/memory"},
        {"hybrid: memory in v1",
         Files{{self, "4:memory:/a\n1:name=systemd:/b\n0::/b\n"},
               {mounts,
                std::string(kV1Mount) + "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"},
               {info, plenty},
               {v1 + "/a/memory.limit_in_bytes", "3145728\n"}},
         3 * kMiB, group1},
        {"ulimit -v",
         {{info, plenty}, {"proc/self/status", "VmPeak:\t 9 kB\nVmSize:\t    1024 kB\nVmData:\t 8 kB\n"}},
         3 * kMiB,
         "ulimit -v",
         {4 * kMiB, std::nullopt}},
        {"ulimit -d",
         {{info, plenty}, {"proc/self/status", "VmSize:\t    1024 kB\nVmData:\t 2048 kB\n"}},
         2 * kMiB,
         "ulimit -d",
         {8 * kMiB, 4 * kMiB}},
        {"ulimit -v alone", {}, 4 * kMiB, "ulimit -v", {4 * kMiB, std::nullopt}},
        {"above its ulimit",
         {{"proc/self/status", "VmSize:\t 8192 kB\n"}},
         0,
         "ulimit -v",
         {4 * kMiB, std::nullopt}},
    };
}

TEST(AvailableMemory, OfMadeUpSystems) {
    for (const auto& [name, files, expected, bound, limits] : cases()) {
        const TemporaryFolder root;
        for (const auto& [file, text] : files) root.write(file, text);
        const auto found = available_memory(limits, root.path().string());
        ASSERT_EQ(found.has_value(), expected.has_value()) << name;
        if (!found) continue;
        EXPECT_EQ(found->bytes, *expected) << name;
        EXPECT_EQ(found->bound, bound) << name;
    }
}

TEST(AvailableMemory, OfThisSystem) {
    const auto found = available_memory();
    ASSERT_TRUE(found.has_value());
    EXPECT_GT(found->bytes, 0);
}

}  // namespace
}  // namespace flashoptim::trainer
