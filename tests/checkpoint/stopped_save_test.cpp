// A save that was killed between its two renames: its checkpoint is opened where it lies, and
// survives whatever comes next.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "killed_saves.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

/// A save of step 5 over step 4, killed between its two renames.
void make_stopped_save(const TestFolder& folder, const std::string& target) {
    const fs::path path = make_workspace(folder, target, kFiles);
    StepCheckpoint(4).write_to(path / "old");
    StepCheckpoint(5).write_to(path / "new");
}

TEST(StoppedBetweenRenames, IsOpenedWhereItLies) {
    const TestFolder folder(fast_place());
    make_stopped_save(folder, "ckpt");
    const auto before = snapshot(folder.path());
    EXPECT_TRUE(checkpoint::exists(folder / "ckpt/"));
    EXPECT_EQ(step_in(folder / "ckpt"), 4);
    EXPECT_EQ(Checkpoint::open(folder / "ckpt").folder(), folder / "ckpt");
    EXPECT_EQ(snapshot(folder.path()), before);
    StepCheckpoint(6).write_to(folder / "ckpt");
    EXPECT_EQ(step_in(folder / "ckpt"), 6);
    EXPECT_EQ(names_in(folder.path()), (Names{"ckpt"}));
}

// A script makes the folder of its checkpoint before it looks for one to go on from.
TEST(StoppedBetweenRenames, SurvivesAnEmptyFolderInItsPlace) {
    const TestFolder folder(fast_place());
    make_stopped_save(folder, "ckpt");
    fs::create_directory(folder / "ckpt");
    const auto before = snapshot(folder.path());
    EXPECT_TRUE(checkpoint::exists(folder / "ckpt"));
    EXPECT_EQ(step_in(folder / "ckpt"), 4);
    EXPECT_EQ(snapshot(folder.path()), before);
    StepCheckpoint(1).write_to(folder / "other");
    write_file(folder / "other.json", "{}");
    EXPECT_EQ(step_in(folder / "ckpt"), 4);
    StepCheckpoint(6).write_to(folder / "ckpt");
    EXPECT_EQ(step_in(folder / "ckpt"), 6);
    EXPECT_EQ(names_in(folder.path()), (Names{"ckpt", "other", "other.json"}));
}

TEST(StoppedBetweenRenames, IsRemovedAsIfItWereInItsPlace) {
    const TestFolder folder(fast_place());
    make_stopped_save(folder, "ckpt");
    checkpoint::remove(folder / "ckpt");
    EXPECT_FALSE(checkpoint::exists(folder / "ckpt"));
    EXPECT_EQ(names_in(folder.path()), Names());
}

// The evaluation runs under another account, or on a disk that is mounted for reading.
TEST(StoppedBetweenRenames, IsOpenedByAGuest) {
    const TestFolder folder(fast_place());
    make_stopped_save(folder, "ckpt");
    ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
    const std::string report = in_child([&]() -> std::string {
        constexpr uid_t kNobody = 65534;
        if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) return "cannot drop root";
        return step_in(folder / "ckpt") == 4 ? "" : "another step";
    });
    EXPECT_EQ(report, "");
}

// The save that comes next fails: what it found is still there.
TEST(StoppedBetweenRenames, SurvivesAFailedSave) {
    const TestFolder folder(fast_place());
    make_stopped_save(folder, "ckpt");
    const StepCheckpoint next(6);
    EXPECT_THROW(write(folder / "ckpt", "no JSON", next.files), InvalidArgument);
    EXPECT_EQ(step_in(folder / "ckpt"), 4);
    const std::string report = in_child([&]() -> std::string {
        const rlimit limit{.rlim_cur = 100, .rlim_max = 100};
        std::signal(SIGXFSZ, SIG_IGN);
        if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return "cannot set the limit";
        try {
            next.write_to(folder / "ckpt");
            return "nothing was thrown";
        } catch (const IoError&) {
            return "";
        }
    });
    EXPECT_EQ(report, "");
    EXPECT_EQ(step_in(folder / "ckpt"), 4);
}

// One name begins another, or differs by its case; saves beside it must not take what is
// another target's only checkpoint.
TEST(StoppedBetweenRenames, SurvivesSavesOfOtherTargets) {
    for (const char* other : {"ckp", "ckpt2", "ckpt.old", "Ckpt", "ckpt "}) {
        const TestFolder folder(fast_place());
        make_stopped_save(folder, "ckpt");
        EXPECT_THROW(Checkpoint::open(folder / other), IoError);
        StepCheckpoint(1).write_to(folder / other);
        write_file(folder / (std::string(other) + ".json"), "{}");
        checkpoint::remove(folder / other);
        EXPECT_EQ(step_in(folder / "ckpt"), 4);
    }
}

// Whoever deletes a checkpoint must not find an older one in its place.
TEST(StoppedBetweenRenames, WhatWasReplacedNeverComesBack) {
    const TestFolder folder(fast_place());
    StepCheckpoint(4).write_to(make_workspace(folder, "ckpt", kFiles) / "old");
    EXPECT_FALSE(checkpoint::exists(folder / "ckpt"));
    EXPECT_THROW(Checkpoint::open(folder / "ckpt"), IoError);
    StepCheckpoint(1).write_to(folder / "other");
    EXPECT_EQ(names_in(folder.path()), (Names{"other"})) << "worthless, whatever is saved beside it";
}

}  // namespace
}  // namespace flashoptim::checkpoint
