// What happens to a folder in which a run lies: nothing of it is lost unasked, and nothing of it mixes with another run.
#include "trainer/run_folder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "flashoptim/error.h"
#include "loop_fixture.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

class RunFolder : public Loop {
protected:
    // A run of 10 steps with checkpoints of 5 and 10.
    TrainOptions trained(const std::string& out) const {
        TrainOptions options = tiny_run(out);
        options.schedule.total_steps = 10;
        options.checkpoint_interval = 5;
        Recorder recorder;
        train(options, recorder);
        return options;
    }
};

// A typing error in --out must not destroy the run that is there.
TEST_F(RunFolder, AnExistingRunIsNotOverwrittenUnasked) {
    TrainOptions options = tiny_run("run");
    options.schedule.total_steps = 1;
    options.schedule.warmup_steps = 0;
    Recorder recorder;
    train(options, recorder);
    const std::string before = read_all(options.out / "metrics.csv");
    EXPECT_NE(message_of<InvalidArgument>([&] { train(options, recorder); }).find("holds a run already"),
              std::string::npos);
    EXPECT_EQ(read_all(options.out / "metrics.csv"), before);
    options.overwrite = true;
    EXPECT_NO_THROW(train(options, recorder));
}

// Going back to an earlier checkpoint must not leave later ones behind, from which the next resume would go on, nor drop them unasked.
TEST_F(RunFolder, GoingBackToAnEarlierCheckpointIsAskedFor) {
    TrainOptions options = tiny_run("run");
    options.checkpoint_interval = 5;
    Recorder recorder;
    train(options, recorder);
    options.resume = checkpoint_folder(options.out, 5);
    EXPECT_NE(message_of<InvalidArgument>([&] { train(options, recorder); }).find("checkpoint of step 20"),
              std::string::npos);
    EXPECT_EQ(newest_checkpoint_step(options.out), 20);
    options.overwrite = true;
    Recorder back;
    back.killed_in_step = 12;
    EXPECT_THROW(train(options, back), Killed);
    EXPECT_EQ(find_checkpoint(options.out).filename(), "step-00000010");

    TrainOptions elsewhere = tiny_run("elsewhere");
    elsewhere.resume = checkpoint_folder(options.out, 5);
    Recorder branch;
    EXPECT_EQ(train(elsewhere, branch).last_step, 20);
    EXPECT_EQ(branch.steps.front().step, 6);
}

TEST_F(RunFolder, KeepsOnlyTheNewestCheckpointsIfAsked) {
    TrainOptions options = tiny_run("run");
    options.checkpoint_interval = 5;
    options.kept_checkpoints = 2;
    Recorder recorder;
    train(options, recorder);
    EXPECT_EQ(recorder.checkpoints.size(), 4U);
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(options.out / "checkpoints")) {
        names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    EXPECT_EQ(names, (std::vector<std::string>{"step-00000015", "step-00000020"}));
}

// Notes that somebody keeps in a checkpoint, folders that only look like one, and somebody's summary are not the run's to remove.
TEST_F(RunFolder, WhatIsNotOfTheRunStays) {
    TrainOptions options = trained("run");
    const fs::path checkpoints = options.out / "checkpoints";
    std::ofstream(checkpoint_folder(options.out, 5) / "notes.txt") << "mine";
    for (const char* name : {"step-3", "step-00000003.bak", "step-0000000x", "step-000000003", "best"}) {
        fs::create_directories(checkpoints / name);
        std::ofstream(checkpoints / name / "notes.txt") << "mine";
    }
    std::ofstream(checkpoints / "step-00000002") << "mine";
    const auto left = remove_old_checkpoints(options.out, 1);
    ASSERT_EQ(left.size(), 1U);
    EXPECT_NE(left[0].find("it holds 'notes.txt'"), std::string::npos) << left[0];
    EXPECT_EQ(newest_checkpoint_step(options.out), 10);
    options.overwrite = true;
    Recorder recorder;
    EXPECT_NE(message_of<IoError>([&] { train(options, recorder); }).find("it holds 'notes.txt'"),
              std::string::npos);
    EXPECT_EQ(read_all(checkpoint_folder(options.out, 5) / "notes.txt"), "mine");
    EXPECT_EQ(read_all(checkpoints / "step-00000002"), "mine");
    EXPECT_EQ(read_all(checkpoints / "step-3/notes.txt"), "mine");
    EXPECT_EQ(read_all(checkpoints / "best/notes.txt"), "mine");

    TrainOptions elsewhere = tiny_run("elsewhere");
    fs::create_directories(elsewhere.out);
    std::ofstream(elsewhere.out / "summary.json") << "mine";
    EXPECT_NE(message_of<InvalidArgument>([&] { train(elsewhere, recorder); }).find("holds a run already"),
              std::string::npos);
    EXPECT_EQ(read_all(elsewhere.out / "summary.json"), "mine");
}

// Tab completion adds a slash, scripts change folders, clusters link disks: it is the same run, which must not be refused, let
// alone deleted.
TEST_F(RunFolder, TheCheckpointIsThatOfTheRunByWhateverPathItIsNamed) {
    const TrainOptions options = trained("run");
    const fs::path checkpoint = checkpoint_folder(options.out, 10);
    fs::create_directory_symlink(checkpoint, folder_.path() / "newest");
    fs::create_directory_symlink(options.out, folder_.path() / "linked");
    const fs::path before = fs::current_path();
    fs::current_path(options.out / "checkpoints");
    for (const fs::path& named :
         {checkpoint, checkpoint / "", options.out / "checkpoints" / "." / checkpoint.filename(),
          checkpoint.filename(), "." / checkpoint.filename(), folder_.path() / "newest",
          checkpoint_folder(folder_.path() / "linked", 10)}) {
        for (const bool overwrite : {false, true}) {
            EXPECT_TRUE(claim_run_folder(options.out, find_checkpoint(named), 10, overwrite)) << named;
            EXPECT_TRUE(claim_run_folder(folder_.path() / "linked", named, 10, overwrite)) << named;
            EXPECT_EQ(newest_checkpoint_step(options.out), 10) << named;
        }
    }
    fs::current_path(before);
    TrainOptions longer = options;
    longer.resume = checkpoint / "";
    longer.schedule.total_steps = 12;
    Recorder recorder;
    EXPECT_EQ(train(longer, recorder).last_step, 12);
    const std::string metrics = read_all(options.out / "metrics.csv");
    EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 1 + 12);
}

// The metrics may have been moved away; the checkpoints are still hours of somebody's training.
TEST_F(RunFolder, CheckpointsOfAnotherRunAreNotRemovedUnasked) {
    const TrainOptions other = trained("other");
    TrainOptions options = trained("run");
    fs::remove(options.out / "metrics.csv");
    options.resume = other.out;
    options.schedule.total_steps = 12;
    Recorder recorder;
    EXPECT_NE(message_of<InvalidArgument>([&] { train(options, recorder); }).find("holds a run already"),
              std::string::npos);
    options.resume.clear();
    EXPECT_NE(message_of<InvalidArgument>([&] { train(options, recorder); }).find("holds a run already"),
              std::string::npos);
    EXPECT_TRUE(fs::exists(checkpoint_folder(options.out, 5)));
    EXPECT_TRUE(fs::exists(checkpoint_folder(options.out, 10)));

    options.resume = other.out;
    options.overwrite = true;
    train(options, recorder);
    EXPECT_FALSE(fs::exists(checkpoint_folder(options.out, 5)));
    EXPECT_TRUE(fs::exists(checkpoint_folder(other.out, 10)));
}

// One file with the rows of two runs would be plotted as one.
TEST_F(RunFolder, NoRowOfAnotherRunStaysInFront) {
    const TrainOptions other = trained("other");
    TrainOptions options = trained("run");
    options.resume = checkpoint_folder(other.out, 5);
    options.overwrite = true;
    Recorder recorder;
    train(options, recorder);
    const std::string metrics = read_all(options.out / "metrics.csv");
    EXPECT_EQ(metrics.substr(metrics.find('\n') + 1, 2), "6,");
    EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 6);
}

}  // namespace
}  // namespace flashoptim::trainer
