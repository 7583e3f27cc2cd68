// The default number of threads. If these fail, a process in a container starts as many threads as its
// machine has CPUs, and its steps are throttled or wait for one another.
#include "flashoptim/system/cpu_count.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace flashoptim {

namespace {

using Files = std::map<std::string, std::string>;

/// A system of files below a folder of its own.
class Root {
public:
    explicit Root(const Files& files) {
        for (const auto& [name, text] : files) {
            const auto path = std::filesystem::path(folder_ + name);
            std::filesystem::create_directories(path.parent_path());
            std::ofstream(path) << text;
        }
    }
    ~Root() { std::filesystem::remove_all(folder_); }
    Root(const Root&) = delete;
    Root& operator=(const Root&) = delete;
    [[nodiscard]] const std::string& path() const { return folder_; }

private:
    const std::string folder_ = testing::TempDir() + "flashoptim_cpu_count_" + std::to_string(::getpid());
};

const char* const kV2Mount =
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
const char* const kV1Mount =
    "24 23 0:21 / /sys/fs/cgroup/memory rw shared:8 - cgroup cgroup rw,memory\n"
    "25 23 0:22 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "26 23 0:23 / /sys/fs/cgroup/cpuset rw shared:10 - cgroup cgroup rw,cpuset\n";

struct Case {
    std::string name;
    Files files;
    int expected;
};

std::vector<Case> cases() {
    const std::string self = "/proc/self/cgroup", mounts = "/proc/self/mountinfo", v2 = "/sys/fs/cgroup",
                      v1 = "/sys/fs/cgroup/cpu,cpuacct";
    const auto v2_of = [&](const std::string& cpu_max) {
        return Files{{self, "0::/a\n"}, {mounts, kV2Mount}, {v2 + "/a/cpu.max", cpu_max}};
    };
    const auto v1_of = [&](const std::string& quota, const std::string& period) {
        return Files{{self, "4:memory:/m\n3:cpu,cpuacct:/a\n"},
                     {mounts, kV1Mount},
                     {v1 + "/a/cpu.cfs_quota_us", quota},
                     {v1 + "/a/cpu.cfs_period_us", period}};
    };
    return {
        {"no files at all", {}, 0},
        {"v2: two CPUs", v2_of("200000 100000\n"), 2},
        {"v2: half a CPU", v2_of("50000 100000\n"), 1},
        {"v2: one and a half", v2_of("150000 100000\n"), 2},
        {"v2: a hundredth", v2_of("1000 100000\n"), 1},
        {"v2: another period", v2_of("40000 10000\n"), 4},
        {"v2: no limit", v2_of("max 100000\n"), 0},
        {"v2: without a newline", v2_of("300000 100000"), 3},
        {"v2: empty", v2_of(""), 0},
        {"v2: one number", v2_of("100000\n"), 0},
        {"v2: words", v2_of("a b\n"), 0},
        {"v2: three numbers", v2_of("1 2 3\n"), 0},
        {"v2: negative", v2_of("-100000 100000\n"), 0},
        {"v2: period 0", v2_of("100000 0\n"), 0},
        {"v2: more than 64 bits", v2_of("99999999999999999999 100000\n"), 0},
        {"v2: more than int", v2_of("9223372036854775807 1\n"), 2147483647},
        {"v2: a folder in the place of the file",
         {{self, "0::/a\n"}, {mounts, kV2Mount}, {v2 + "/a/cpu.max/file", ""}},
         0},
        {"v2: the smallest of the groups above",
         {{self, "0::/a/b/c\n"},
          {mounts, kV2Mount},
          {v2 + "/a/cpu.max", "300000 100000\n"},
          {v2 + "/a/b/cpu.max", "max 100000\n"},
          {v2 + "/a/b/c/cpu.max", "800000 100000\n"}},
         3},
        {"v2: a namespace of its own, as containers have",
         {{self, "0::/\n"}, {mounts, kV2Mount}, {v2 + "/cpu.max", "250000 100000\n"}},
         3},
        {"v2: outside of its namespace",
         {{self, "0::/../../b\n"}, {mounts, kV2Mount}, {v2 + "/cpu.max", "200000 100000\n"}},
         2},
        {"v2: a group that is mounted without those above it",
         {{self, "0::/docker/id/b\n"},
          {mounts, "30 23 0:26 /docker/id /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"},
          {v2 + "/cpu.max", "400000 100000\n"},
          {v2 + "/b/cpu.max", "600000 100000\n"}},
         4},
        {"v2: a group that only begins like the one that is mounted",
         {{self, "0::/docker/id2/b\n"},
          {mounts, "30 23 0:26 /docker/id /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"},
          {v2 + "/cpu.max", "400000 100000\n"},
          {v2 + "2/b/cpu.max", "100000 100000\n"}},
         4},
        {"v2: a mount point with a space",
         {{self, "0::/a\n"},
          {mounts, "30 23 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw\n"},
          {"/my groups/a/cpu.max", "500000 100000\n"}},
         5},
        {"v2: a group that was removed",
         {{self, "0::/a/b (deleted)\n"}, {mounts, kV2Mount}, {v2 + "/a/cpu.max", "200000 100000\n"}},
         2},
        {"v2: no mount table", {{self, "0::/a\n"}, {v2 + "/a/cpu.max", "700000 100000\n"}}, 7},
        {"v1: two CPUs", v1_of("200000\n", "100000\n"), 2},
        {"v1: half a CPU", v1_of("50000\n", "100000\n"), 1},
        {"v1: no limit", v1_of("-1\n", "100000\n"), 0},
        {"v1: quota 0", v1_of("0\n", "100000\n"), 0},
        {"v1: words", v1_of("many\n", "100000\n"), 0},
        {"v1: no period",
         {{self, "3:cpu,cpuacct:/a\n"}, {mounts, kV1Mount}, {v1 + "/a/cpu.cfs_quota_us", "200000\n"}},
         0},
        {"v1: the smallest of the groups above",
         {{self, "3:cpu,cpuacct:/a/b\n"},
          {mounts, kV1Mount},
          {v1 + "/cpu.cfs_quota_us", "-1\n"},
          {v1 + "/cpu.cfs_period_us", "100000\n"},
          {v1 + "/a/cpu.cfs_quota_us", "120000\n"},
          {v1 + "/a/cpu.cfs_period_us", "100000\n"},
          {v1 + "/a/b/cpu.cfs_quota_us", "900000\n"},
          {v1 + "/a/b/cpu.cfs_period_us", "100000\n"}},
         2},
        {"v1: a container that sees its host's groups",
         {{self, "3:cpu,cpuacct:/docker/id\n"},
          {mounts, "25 23 0:22 /docker/id /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"},
          {v1 + "/cpu.cfs_quota_us", "300000\n"},
          {v1 + "/cpu.cfs_period_us", "100000\n"}},
         3},
        {"v1: CPU sets are no CPU time",
         {{self, "5:cpuset:/a\n"},
          {mounts, kV1Mount},
          {v1 + "/a/cpu.cfs_quota_us", "100000\n"},
          {v1 + "/a/cpu.cfs_period_us", "100000\n"}},
         0},
        {"v1: no mount table",
         {{self, "2:cpu:/a\n"},
          {"/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "200000\n"},
          {"/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n"}},
         2},
        {"hybrid: CPU time in v1",
         {{self, "3:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/b\n"},
          {mounts, std::string(kV1Mount) + "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"},
          {"/sys/fs/cgroup/unified/b/cgroup.procs", "1\n"},
          {v1 + "/a/cpu.cfs_quota_us", "350000\n"},
          {v1 + "/a/cpu.cfs_period_us", "100000\n"}},
         4},
        {"lines that are none",
         {{self, "\n::\nx\n0:\n0::/a\n:::/a\n"},
          {mounts, std::string("- cgroup2\n1 - cgroup2 x\n\n") + kV2Mount + "1 2 3 4 5 - \n"},
          {v2 + "/a/cpu.max", "200000 100000\n"}},
         2},
    };
}

}  // namespace

TEST(CpuCount, QuotasOfControlGroups) {
    for (const auto& [name, files, expected] : cases()) {
        const Root root(files);
        EXPECT_EQ(quota_cpus(root.path()), expected) << name;
    }
}

TEST(CpuCount, WhatTheEnvironmentSays) {
    for (const auto& [text, expected] : std::map<std::string, int>{{"1", 1},
                                                                   {"4", 4},
                                                                   {"4,2", 4},
                                                                   {" 3", 3},
                                                                   {"5000", 1024},
                                                                   {"", 0},
                                                                   {"0", 0},
                                                                   {"-2", 0},
                                                                   {"many", 0},
                                                                   {"2x", 2},
                                                                   {"99999999999999999999", 1024}}) {
        EXPECT_EQ(threads_of(text.c_str()), expected) << text;
    }
    EXPECT_EQ(threads_of(nullptr), 0);
}

TEST(CpuCount, TheDefaultIsWhatMayBeUsed) {
    EXPECT_GE(usable_cpus(), 1);
    EXPECT_LE(usable_cpus(), affinity_cpus());
    const auto default_here = default_threads();
    EXPECT_GE(default_here.count, 1);
    if (!default_here.is_chosen) {
        EXPECT_EQ(default_here.count, usable_cpus());
    }
}

#if defined(__linux__)
TEST(CpuCount, AffinityIsTheCallersOwn) {
    std::thread([] {
        cpu_set_t all, one;
        CPU_ZERO(&one);
        ASSERT_EQ(::sched_getaffinity(0, sizeof all, &all), 0);
        for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
            if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
        }
        ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
        EXPECT_EQ(affinity_cpus(), 1);
        EXPECT_EQ(usable_cpus(), 1);
    }).join();
}
#endif

}  // namespace flashoptim
