// A run that is killed while it writes loses at most the checkpoint that it was writing. Processes are killed at every system call
// of a write, which is every state that the disk can be left in, and at random moments.
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <optional>
#include <random>
#include <thread>

#include "support.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

// Whether a system call is about memory only. A sanitizer's allocator makes these when it pleases, so that counting them would
// make the n-th call another one in every run.
bool is_about_memory(std::uint64_t number) {
    return number == SYS_mmap || number == SYS_munmap || number == SYS_madvise || number == SYS_mprotect ||
           number == SYS_brk || number == SYS_mremap;
}

// Runs `action` in a child and kills it when it enters its n-th system call, counted from 0 without those about memory. Returns
// whether it was killed (and not done before), or nothing where processes cannot be traced.
template <typename Action>
std::optional<bool> killed_at_system_call(int n, Action action) {
    const pid_t child = ::fork();
    if (child == 0) {
        if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(3);
        ::raise(SIGSTOP);
        try {
            action();
        } catch (...) {
            ::_exit(2);
        }
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    if (!WIFSTOPPED(status)) return std::nullopt;
    bool is_traced = true;
    for (int entered = 0; entered <= n;) {
        ::ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
        ::waitpid(child, &status, 0);
        if (WIFEXITED(status)) {
            EXPECT_EQ(WEXITSTATUS(status), 0);
            return false;
        }
        __ptrace_syscall_info call{};
        is_traced = ::ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof call, &call) > 0;
        if (!is_traced) break;
        if (call.op == PTRACE_SYSCALL_INFO_ENTRY && !is_about_memory(call.entry.nr)) ++entered;
    }
    ::kill(child, SIGKILL);
    ::waitpid(child, &status, 0);
    if (!is_traced) return std::nullopt;
    EXPECT_TRUE(WIFSIGNALED(status));
    return true;
}

class KillWriter : public ::testing::TestWithParam<Replace> {};

TEST_P(KillWriter, AtEverySystemCallLeavesACompleteCheckpoint) {
    const TestFolder folder;
    const StepCheckpoint old(1, 10);
    const StepCheckpoint next(2, 10);
    bool was_killed = true;
    std::int32_t last_step = 1;
    for (int n = 0; was_killed; ++n) {
        old.write_to(folder / "ckpt", GetParam());
        const auto killed = killed_at_system_call(n, [&] { next.write_to(folder / "ckpt", GetParam()); });
        if (!killed) GTEST_SKIP() << "processes cannot be traced here";
        was_killed = *killed;
        const std::int32_t step = step_in(folder / "ckpt");
        ASSERT_TRUE(step == 1 || step == 2) << "killed at system call " << n;
        ASSERT_GE(step, last_step) << "a later kill lost the newer checkpoint, at system call " << n;
        last_step = step;
    }
    EXPECT_EQ(last_step, 2);
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"ckpt"}));
}

// A first checkpoint is there complete or not at all.
TEST_P(KillWriter, OfTheFirstCheckpointLeavesItCompleteOrAbsent) {
    const TestFolder folder;
    const StepCheckpoint first(1, 10);
    bool was_killed = true;
    for (int n = 0; was_killed; ++n) {
        fs::remove_all(folder / "ckpt");
        const auto killed = killed_at_system_call(n, [&] { first.write_to(folder / "ckpt", GetParam()); });
        if (!killed) GTEST_SKIP() << "processes cannot be traced here";
        was_killed = *killed;
        if (checkpoint::exists(folder / "ckpt")) {
            ASSERT_EQ(step_in(folder / "ckpt"), 1) << "killed at system call " << n;
        }
    }
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"ckpt"}));
}

TEST(KillFileWriter, AFileIsOldOrNew) {
    const TestFolder folder;
    bool was_killed = true;
    for (int n = 0; was_killed; ++n) {
        write_file(folder / "x.json", "old");
        const auto killed = killed_at_system_call(n, [&] { write_file(folder / "x.json", "new"); });
        if (!killed) GTEST_SKIP() << "processes cannot be traced here";
        was_killed = *killed;
        const std::string content = read_raw(folder / "x.json");
        ASSERT_TRUE(content == "old" || content == "new") << "killed at system call " << n << ": " << content;
    }
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"x.json"}));
}

// A run that only ever writes, killed at moments that nobody chose: what it reported as written is there, or something newer.
TEST_P(KillWriter, AtRandomMomentsLosesNothingReported) {
    constexpr int kRounds = 40;
    const TestFolder folder;
    StepCheckpoint(0).write_to(folder / "ckpt", GetParam());
    std::mt19937 random(7);
    std::int32_t step = 0;
    for (int round = 0; round < kRounds; ++round) {
        int ends[2];
        ASSERT_EQ(::pipe(ends), 0);
        const pid_t child = ::fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            for (std::int32_t next = step + 1;; ++next) {
                StepCheckpoint(next, 50'000).write_to(folder / "ckpt", GetParam());
                if (::write(ends[1], &next, sizeof next) != sizeof next) ::_exit(1);
            }
        }
        ::close(ends[1]);
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 30'000));
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
        std::int32_t reported = step;
        for (std::int32_t next = 0; ::read(ends[0], &next, sizeof next) == sizeof next;) reported = next;
        ::close(ends[0]);

        step = step_in(folder / "ckpt");
        ASSERT_TRUE(step == reported || step == reported + 1) << "opened " << step << " after " << reported;
    }
    StepCheckpoint(step + 1).write_to(folder / "ckpt", GetParam());
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"ckpt"}));
}

INSTANTIATE_TEST_SUITE_P(Kill, KillWriter, ::testing::Values(Replace::kSwapIfPossible, Replace::kMoveAside),
                         replace_name);

}  // namespace
}  // namespace flashoptim::checkpoint
