// A run that is killed while it writes loses at most the checkpoint that it was writing. Processes are
// killed at every system call of a write that changes files, which is every state that the disk can be
// left in, and at random moments.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <optional>
#include <random>
#include <thread>

#include "support.h"
#include "support/kill_points.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

// Whether `action` was killed (and not done before) at its n-th system call that changes files, counted from
// 0; nothing where processes cannot be traced.
template <typename Action>
std::optional<bool> killed_at_system_call(int n, Action action) {
    const auto ended = test::kill_at_call(n, [&] {
        action();
        return 0;
    });
    if (!ended) return std::nullopt;
    EXPECT_EQ(ended->exit_code, 0);
    return ended->was_killed;
}

// A sweep that kills nobody passes everywhere: each of these writes makes more calls than this.
constexpr int kFewestCalls = 10;

class KillWriter : public ::testing::TestWithParam<Replace> {};

TEST_P(KillWriter, AtEverySystemCallLeavesACompleteCheckpoint) {
    const TestFolder folder;
    const StepCheckpoint old(1, 10);
    const StepCheckpoint next(2, 10);
    bool was_killed = true;
    std::int32_t last_step = 1;
    int kills = 0;
    for (int n = 0; was_killed; ++n) {
        old.write_to(folder / "ckpt", GetParam());
        const auto killed = killed_at_system_call(n, [&] { next.write_to(folder / "ckpt", GetParam()); });
        if (!killed) GTEST_SKIP() << "processes cannot be traced here";
        was_killed = *killed;
        kills += was_killed ? 1 : 0;
        const std::int32_t step = step_in(folder / "ckpt");
        ASSERT_TRUE(step == 1 || step == 2) << "killed at system call " << n;
        ASSERT_GE(step, last_step) << "a later kill lost the newer checkpoint, at system call " << n;
        last_step = step;
    }
    EXPECT_EQ(last_step, 2);
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"ckpt"}));
    EXPECT_GT(kills, kFewestCalls);
}

// A first checkpoint is there complete or not at all.
TEST_P(KillWriter, OfTheFirstCheckpointLeavesItCompleteOrAbsent) {
    const TestFolder folder;
    const StepCheckpoint first(1, 10);
    bool was_killed = true;
    int kills = 0;
    for (int n = 0; was_killed; ++n) {
        fs::remove_all(folder / "ckpt");
        const auto killed = killed_at_system_call(n, [&] { first.write_to(folder / "ckpt", GetParam()); });
        if (!killed) GTEST_SKIP() << "processes cannot be traced here";
        was_killed = *killed;
        kills += was_killed ? 1 : 0;
        if (checkpoint::exists(folder / "ckpt")) {
            ASSERT_EQ(step_in(folder / "ckpt"), 1) << "killed at system call " << n;
        }
    }
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"ckpt"}));
    EXPECT_GT(kills, kFewestCalls);
}

TEST(KillFileWriter, AFileIsOldOrNew) {
    const TestFolder folder;
    bool was_killed = true;
    int kills = 0;
    for (int n = 0; was_killed; ++n) {
        write_file(folder / "x.json", "old");
        const auto killed = killed_at_system_call(n, [&] { write_file(folder / "x.json", "new"); });
        if (!killed) GTEST_SKIP() << "processes cannot be traced here";
        was_killed = *killed;
        kills += was_killed ? 1 : 0;
        const std::string content = read_raw(folder / "x.json");
        ASSERT_TRUE(content == "old" || content == "new") << "killed at system call " << n << ": " << content;
    }
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"x.json"}));
    EXPECT_GT(kills, kFewestCalls);
}

// A run that only ever writes, killed at moments that nobody chose: what it reported as written
// is there, or something newer.
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
