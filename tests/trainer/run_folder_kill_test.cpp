// Runs that are killed at every call that changes the file system: once a checkpoint was completed one is
// always found, and the run that goes on ends with the files of the run that was never killed.
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "flashoptim/error.h"
#include "run_without_model.h"
#include "support/kill_points.h"
#include "trainer/comparison_folder.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

// Kills at every one of so many calls. All of them: FLASHOPTIM_KILL_EVERY=1.
int step_of_kills() {
    const char* const chosen = std::getenv("FLASHOPTIM_KILL_EVERY");
    const int every = chosen != nullptr ? std::atoi(chosen) : 0;
    return every > 0 ? every : 7;
}

const Notice kNobody = [](const std::string&) {};

// Kills `action` at its n-th call that changes files; whether it was killed, and not done before.
template <typename Action>
std::optional<bool> killed(int n, Action action) {
    const auto ended = test::kill_at_call(n, [&] {
        action();
        return 0;
    });
    if (!ended) return std::nullopt;
    EXPECT_EQ(ended->exit_code, 0) << "at call " << n;
    return ended->was_killed;
}

void replace_folder(const fs::path& from, const fs::path& to) {
    fs::remove_all(to);
    fs::copy(from, to, fs::copy_options::recursive);
}

std::map<std::string, std::string> finished(const FastFolder& folder, const FakeRun& run) {
    fs::remove_all(folder / "whole");
    run_fake(folder / "whole", run);
    return tree_of(folder / "whole", /*with_own=*/false);
}

std::string names(const std::map<std::string, std::string>& tree) {
    std::string text;
    for (const auto& [name, content] : tree) text += name + " ";
    return text;
}

void expect_equal(const std::map<std::string, std::string>& actual,
                  const std::map<std::string, std::string>& expected, int n) {
    ASSERT_EQ(names(actual), names(expected)) << "killed at call " << n;
    ASSERT_TRUE(actual == expected) << "killed at call " << n;
}

// A run with --keep-checkpoints, and one that goes on, killed anywhere.
TEST(KillRun, ThatRemovesOldCheckpointsLosesNothing) {
    const FastFolder folder;
    for (const std::int64_t kept : {1, 2, 0}) {
        FakeRun run;
        run.steps = 5;
        run.interval = 1;
        run.kept = kept;
        const auto expected = finished(folder, run);
        const fs::path out = folder / "run";
        bool was_killed = true;
        for (int n = 0; was_killed; n += step_of_kills()) {
            fs::remove_all(out);
            SharedNumber done;
            const auto ended = killed(n, [&] { run_fake(out, run, done.get()); });
            if (!ended) GTEST_SKIP() << "processes cannot be traced here";
            was_killed = *ended;
            FakeRun next = run;
            if (done.value() > 0) {
                ASSERT_GE(read_fake(find_checkpoint(out, kNobody)).second, done.value()) << n;
                next.resume = true;
            } else {
                next.overwrite = true;
                if (fs::exists(out)) {
                    try {
                        next.resume = !find_checkpoint(out, kNobody).empty();
                        next.overwrite = false;
                    } catch (const IoError&) {
                    }
                }
            }
            run_fake(out, next);
            expect_equal(tree_of(out, false), expected, n);
        }
    }
}

struct Replacement {
    const char* name;
    bool goes_back;     // from a checkpoint of the run itself, dropping later ones
    bool has_manifest;  // the run that is replaced; false: an earlier version wrote it
};

class KillReplacement : public testing::TestWithParam<Replacement> {
protected:
    KillReplacement() {
        run_fake(folder_ / "old", old_run());
        if (!GetParam().has_manifest) {
            fs::remove(folder_ / "old" / std::string(kManifestName));
            fs::remove(folder_ / "old" / std::string(kLockName));
            checkpoint::write_file(folder_ / "old" / "summary.json",
                                   R"({"runs": [{"optimizer": "adamw", "bytes_per_parameter": {}}]})");
        }
        fs::create_directories(folder_ / "old" / "mine");
        checkpoint::write_file(folder_ / "old" / "mine" / "notes.txt", "mine");
        before_ = tree_of(folder_ / "old", false);
    }
    static FakeRun old_run() { return {}; }
    static FakeRun new_run() {
        FakeRun run;
        run.overwrite = true;
        run.steps = 5;
        run.kept = 2;
        run.seed = GetParam().goes_back ? 1 : 2;
        run.resume = GetParam().goes_back;
        run.resume_step = GetParam().goes_back ? 2 : 0;
        return run;
    }
    // What the folder holds once the new run is complete and was never killed.
    std::map<std::string, std::string> complete() {
        replace_folder(folder_ / "old", folder_ / "whole");
        run_fake(folder_ / "whole", new_run());
        return tree_of(folder_ / "whole", false);
    }
    FastFolder folder_;
    std::map<std::string, std::string> before_;
};

TEST_P(KillReplacement, LeavesTheOldRunOrTheNewOne) {
    const auto expected = complete();
    const fs::path out = folder_ / "run";
    const std::int64_t from = new_run().resume_step;
    bool was_killed = true;
    int back = 0, onward = 0;
    for (int n = 0; was_killed; n += step_of_kills()) {
        replace_folder(folder_ / "old", out);
        SharedNumber done;
        const auto ended = killed(n, [&] { run_fake(out, new_run(), done.get()); });
        if (!ended) GTEST_SKIP() << "processes cannot be traced here";
        was_killed = *ended;

        // A reader, which changes nothing, finds the old run's newest checkpoint or one of the new run.
        const auto left = tree_of(out);
        const auto [seed, step] = read_fake(find_checkpoint(out, kNobody));
        ASSERT_TRUE(tree_of(out) == left);
        const bool is_new = GetParam().goes_back ? fs::exists(out / checkpoint_name(5)) ||
                                                       (step == 4 && step > from && done.value() == 4)
                                                 : seed == 2;
        if (done.value() > 0) {
            ASSERT_TRUE(is_new && step >= done.value()) << n;
        }
        if (!is_new) {
            ASSERT_EQ(step, 4) << n;
        }

        // A writer that does nothing brings the folder in order.
        {
            const RunFolder next(out, kNobody);
        }
        const auto settled = tree_of(out, false);
        if (settled == before_) {
            ++back;
            FakeRun again = new_run();
            run_fake(out, again);
        } else {
            ++onward;
            ASSERT_EQ(names(settled).find(".flashoptim-replaced"), std::string::npos) << n;
            ASSERT_GE(read_fake(find_checkpoint(out, kNobody)).second, done.value());
            FakeRun rest = new_run();
            rest.overwrite = false;
            rest.resume = true;
            rest.resume_step = 0;
            run_fake(out, rest);
        }
        expect_equal(tree_of(out, false), expected, n);
    }
    EXPECT_GT(back * step_of_kills(), 10);
    EXPECT_GT(onward * step_of_kills(), 10);
}

// The repair may be killed as well.
TEST_P(KillReplacement, IsUndoneOrFinishedAlsoWhereThatIsKilled) {
    const fs::path broken = folder_ / "broken", out = folder_ / "run";
    bool was_killed_first = true;
    for (int at = 0; was_killed_first; at += 3 * step_of_kills()) {
        replace_folder(folder_ / "old", broken);
        const auto first = killed(at, [&] { run_fake(broken, new_run()); });
        if (!first) GTEST_SKIP() << "processes cannot be traced here";
        was_killed_first = *first;
        replace_folder(broken, out);
        {
            const RunFolder next(out, kNobody);
        }
        const auto expected = tree_of(out, false);
        bool was_killed = true;
        for (int n = 0; was_killed; n += step_of_kills()) {
            replace_folder(broken, out);
            was_killed = *killed(n, [&] { const RunFolder next(out, kNobody); });
            {
                const RunFolder next(out, kNobody);
            }
            expect_equal(tree_of(out, false), expected, n);
        }
    }
}

// Out of memory, a full disk or a bad loss before the first checkpoint: everything is as before.
TEST_P(KillReplacement, IsUndoneWhereTheNewRunFails) {
    const fs::path out = folder_ / "run";
    for (const std::int64_t step : {1, 2, 3, 4}) {
        FakeRun run = new_run();
        if (step <= run.resume_step) continue;
        replace_folder(folder_ / "old", out);
        run.interval = 4;
        run.fails_in_step = step;
        EXPECT_THROW(run_fake(out, run), FakeFailure);
        expect_equal(tree_of(out, false), before_, static_cast<int>(step));
    }
    FakeRun run = new_run();
    run.fails_in_step = 5;
    EXPECT_THROW(run_fake(out, run), FakeFailure);  // after its first checkpoint, of step 4
    EXPECT_EQ(read_fake(find_checkpoint(out, kNobody)).second, 4);
    EXPECT_FALSE(fs::exists(out / "summary.json"));
}

INSTANTIATE_TEST_SUITE_P(Kill, KillReplacement,
                         testing::Values(Replacement{"Anew", false, true},
                                         Replacement{"AnewOverAnEarlierVersion", false, false},
                                         Replacement{"BackToAnEarlierStep", true, true},
                                         Replacement{"BackInAnEarlierVersion", true, false}),
                         [](const auto& instance) { return std::string(instance.param.name); });

// A comparison of two runs, killed anywhere: a run that was complete stays, and the next
// comparison says what it finds.
TEST(KillComparison, LeavesItsCompleteRuns) {
    const FastFolder folder;
    const fs::path out = folder / "comparison";
    const std::vector<std::string> runs = {"a", "b"};
    const auto compare = [&](std::uint32_t seed, bool overwrite, std::int64_t* done) {
        ComparisonFolder own(out, runs, 4, overwrite, kNobody);
        for (const std::string& name : runs) {
            FakeRun run;
            run.seed = seed;
            run.overwrite = overwrite;
            run_fake(out / name, run);
            checkpoint::write_file(
                out / name / kSummaryName,
                R"({"runs": [{"optimizer": "adamw", "stopped": false, "bytes_per_parameter": {}}]})");
            if (done != nullptr) ++*done;
        }
        checkpoint::write_file(out / kSummaryName, std::to_string(seed));
        own.end();
    };
    compare(1, false, nullptr);
    fs::rename(out, folder / "old");
    for (const bool overwrite : {false, true}) {
        bool was_killed = true;
        for (int n = 0; was_killed; n += step_of_kills()) {
            fs::remove_all(out);
            if (overwrite) fs::copy(folder / "old", out, fs::copy_options::recursive);
            SharedNumber done;
            const auto ended = killed(n, [&] { compare(2, overwrite, done.get()); });
            if (!ended) GTEST_SKIP() << "processes cannot be traced here";
            was_killed = *ended;
            for (std::size_t index = 0; index < 2; ++index) {
                const bool is_done = static_cast<std::int64_t>(index) < done.value();
                if (!is_done && !overwrite) continue;
                const auto [seed, step] = read_fake(find_checkpoint(out / runs[index], kNobody));
                ASSERT_TRUE(seed == 2 || (!is_done && seed == 1)) << n;
                ASSERT_EQ(step, seed == 2 && !is_done ? step : 4) << n;
            }
            std::string refusal;
            try {
                const ComparisonFolder next(out, runs, 4, false, kNobody);
            } catch (const InvalidArgument& error) {
                refusal = error.what();
            }
            if (done.value() > 0 && !overwrite) {
                ASSERT_NE(refusal.find("; complete: a"), std::string::npos) << refusal;
            }
            // The summary is never that of runs that are not there any more.
            if (fs::exists(out / kSummaryName)) {
                std::ifstream stream(out / kSummaryName);
                std::uint32_t seed = 0;
                stream >> seed;
                for (const std::string& name : runs)
                    ASSERT_EQ(read_fake(find_checkpoint(out / name, kNobody)).first, seed) << n;
            }
            compare(3, true, nullptr);
            ASSERT_EQ(names(tree_of(out)).find(".flashoptim-replaced"), std::string::npos) << n;
        }
    }
}

}  // namespace
}  // namespace flashoptim::trainer
