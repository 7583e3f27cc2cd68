// What happens to a folder in which a run lies: nothing of it is lost unasked, and nothing
// of it mixes with another run.
#include "trainer/run_folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "flashoptim/error.h"
#include "loop_fixture.h"
#include "run_without_model.h"
#include "trainer/comparison_folder.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

const Notice kNobody = [](const std::string&) {};

class RunFolderTest : public Loop {
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
TEST_F(RunFolderTest, AnExistingRunIsNotOverwrittenUnasked) {
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

// Going back to an earlier checkpoint must not leave later ones behind, from which the next resume would
// go on, nor drop them unasked.
TEST_F(RunFolderTest, GoingBackToAnEarlierCheckpointIsAskedFor) {
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
    EXPECT_EQ(find_checkpoint(options.out, kNobody).filename(), "step-00000010");

    TrainOptions elsewhere = tiny_run("elsewhere");
    elsewhere.resume = checkpoint_folder(options.out, 5);
    Recorder branch;
    EXPECT_EQ(train(elsewhere, branch).last_step, 20);
    EXPECT_EQ(branch.steps.front().step, 6);
}

TEST_F(RunFolderTest, KeepsOnlyTheNewestCheckpointsIfAsked) {
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

// Notes that somebody keeps in a checkpoint, and folders that only look like one,
// are not the run's to remove.
TEST_F(RunFolderTest, WhatIsNotOfTheRunStays) {
    TrainOptions options = trained("run");
    const fs::path checkpoints = options.out / "checkpoints";
    std::ofstream(checkpoint_folder(options.out, 5) / "notes.txt") << "mine";
    for (const char* name : {"step-3", "step-00000003.bak", "step-0000000x", "step-000000003", "best"}) {
        fs::create_directories(checkpoints / name);
        std::ofstream(checkpoints / name / "notes.txt") << "mine";
    }
    std::ofstream(checkpoints / "step-00000030") << "mine";  // of a step that the run does not come to
    {
        std::vector<std::string> left;
        RunFolder folder(options.out, [&](const std::string& line) { left.push_back(line); });
        folder.begin(checkpoint_folder(options.out, 10), 10, 20, false);
        folder.remove_old_checkpoints(1);
        ASSERT_EQ(left.size(), 1U);
        EXPECT_NE(left[0].find("it holds 'notes.txt'"), std::string::npos) << left[0];
    }
    EXPECT_EQ(newest_checkpoint_step(options.out), 10);
    options.overwrite = true;
    Recorder recorder;
    EXPECT_NE(message_of<IoError>([&] { train(options, recorder); }).find("it holds 'notes.txt'"),
              std::string::npos);
    EXPECT_EQ(read_all(checkpoint_folder(options.out, 5) / "notes.txt"), "mine");
    EXPECT_EQ(read_all(checkpoints / "step-00000030"), "mine");
    EXPECT_EQ(read_all(checkpoints / "step-3/notes.txt"), "mine");
    EXPECT_EQ(read_all(checkpoints / "best/notes.txt"), "mine");
}

// A name that the run needs and that is somebody else's, whatever it is: refused, and as it was,
// with and without --overwrite.
TEST_F(RunFolderTest, WhatIsInTheWayIsNamedAndStays) {
    const std::vector<std::string> needed = {"metrics.csv", "summary.json", "checkpoints",
                                             "checkpoints/step-00000002", std::string(kLockName)};
    for (const std::string& name : needed) {
        for (const char* kind : {"text", "empty", "folder", "link", "dangling link", "pipe"}) {
            if (name == "checkpoints" && (kind == std::string("folder") || kind == std::string("link")))
                continue;
            if (name == kLockName && kind == std::string("empty")) continue;  // a lock that nobody holds
            TrainOptions options = tiny_run("in-the-way");
            fs::remove_all(options.out);
            const fs::path place = options.out / name;
            fs::create_directories(place.parent_path());
            fs::create_directories(folder_.path() / "mine");
            std::ofstream(folder_.path() / "mine" / "notes.txt") << "mine";
            if (kind == std::string("text")) std::ofstream(place) << "mine";
            if (kind == std::string("empty")) std::ofstream(place) << "";
            if (kind == std::string("folder")) {
                fs::create_directories(place);
                std::ofstream(place / "notes.txt") << "mine";
            }
            if (kind == std::string("link")) fs::create_symlink(folder_.path() / "mine", place);
            if (kind == std::string("dangling link")) fs::create_symlink(folder_.path() / "nowhere", place);
            if (kind == std::string("pipe")) {
                ASSERT_EQ(::mkfifo(place.c_str(), 0666), 0);
            }
            const auto before = fs::symlink_status(place).type();
            for (const bool overwrite : {false, true}) {
                options.overwrite = overwrite;
                Recorder recorder;
                const std::string message = message_of<IoError>([&] { train(options, recorder); });
                EXPECT_NE(message.find(name + "' is in the way"), std::string::npos)
                    << kind << ": " << message;
                EXPECT_NE(message.find("give another --out"), std::string::npos) << message;
                EXPECT_TRUE(recorder.steps.empty());
                EXPECT_EQ(fs::symlink_status(place).type(), before) << name << ", " << kind;
                if (before == fs::file_type::regular) {
                    EXPECT_EQ(read_all(place), kind == std::string("text") ? "mine" : "");
                }
                if (before == fs::file_type::directory) {
                    EXPECT_EQ(read_all(place / "notes.txt"), "mine");
                }
                EXPECT_FALSE(fs::exists(options.out / kManifestName)) << name << ", " << kind;
            }
        }
    }
    EXPECT_EQ(read_all(folder_.path() / "mine" / "notes.txt"), "mine");
}

// A comparison's folder is not a run's, nor the other way round, whoever asks and whichever version wrote it.
TEST_F(RunFolderTest, RunsAndComparisonsDoNotReplaceEachOther) {
    const fs::path comparison = folder_.path() / "comparison";
    {
        ComparisonFolder folder(comparison, {"a"}, 4, false, kNobody);
        std::ofstream(comparison / "summary.json")
            << R"({"runs": [{"optimizer": "adamw", "bytes_per_parameter": {}, "name": "a"}]})";
        folder.end();
    }
    TrainOptions run = trained("run");
    for (const bool has_manifest : {true, false}) {
        if (!has_manifest) {
            fs::remove(comparison / kManifestName);
            fs::remove(run.out / kManifestName);
        }
        const std::string before = read_all(comparison / "summary.json");
        for (const bool overwrite : {false, true}) {
            TrainOptions options = tiny_run("comparison");
            options.overwrite = overwrite;
            Recorder recorder;
            EXPECT_NE(
                message_of<InvalidArgument>([&] { train(options, recorder); }).find("holds a comparison"),
                std::string::npos);
            EXPECT_EQ(read_all(comparison / "summary.json"), before);
            EXPECT_NE(message_of<InvalidArgument>([&] {
                          ComparisonFolder folder(run.out, {"a"}, 4, overwrite, kNobody);
                      }).find("holds a run"),
                      std::string::npos);
        }
    }
}

// Two runs in one folder would mix their rows and checkpoints.
TEST_F(RunFolderTest, AFolderInUseIsRefusedUnderEveryNameAndFreeWhenItsHolderDies) {
    const TrainOptions options = trained("run");
    fs::create_directory_symlink(options.out, folder_.path() / "linked");
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t holder = ::fork();
    if (holder == 0) {
        RunFolder folder(options.out, kNobody);
        folder.begin(checkpoint_folder(options.out, 10), 10, 20, false);
        [[maybe_unused]] const auto written = ::write(ends[1], "x", 1);
        ::pause();
        ::_exit(0);
    }
    char ready = 0;
    ASSERT_EQ(::read(ends[0], &ready, 1), 1);
    const std::string metrics = read_all(options.out / "metrics.csv");
    for (const fs::path& out :
         {options.out, options.out / "", options.out / ".", folder_.path() / "linked"}) {
        for (const bool overwrite : {false, true}) {
            for (const bool resume : {false, true}) {
                TrainOptions other = options;
                other.out = out;
                other.overwrite = overwrite;
                if (resume) other.resume = out;
                Recorder recorder;
                const std::string message = message_of<IoError>([&] { train(other, recorder); });
                EXPECT_NE(message.find("in use by another run (process " + std::to_string(holder)),
                          std::string::npos)
                    << message;
                EXPECT_NE(message.find("another --out"), std::string::npos) << message;
            }
        }
    }
    EXPECT_NE(message_of<IoError>([&] {
                  ComparisonFolder folder(options.out, {"a"}, 4, true, kNobody);
              }).find("in use"),
              std::string::npos);
    EXPECT_EQ(read_all(options.out / "metrics.csv"), metrics);
    // To go on elsewhere from a run that lives only reads.
    TrainOptions elsewhere = tiny_run("elsewhere");
    elsewhere.resume = options.out;
    Recorder recorder;
    EXPECT_EQ(train(elsewhere, recorder).last_step, 20);
    ::kill(holder, SIGKILL);
    ::waitpid(holder, nullptr, 0);
    ::close(ends[0]);
    ::close(ends[1]);
    TrainOptions longer = options;
    longer.resume = options.out;
    longer.schedule.total_steps = 12;
    EXPECT_EQ(train(longer, recorder).last_step, 12);
}

// A damaged checkpoint must not keep its run from being replaced, nor be lost: it may be the only one left.
TEST_F(RunFolderTest, ADamagedCheckpointIsMovedAwayWhereItsRunIsReplaced) {
    for (const std::string damage : {"no table", "no content", "foreign content", "no table, and a note"}) {
        TrainOptions options = trained(damage);
        const fs::path newest = checkpoint_folder(options.out, 10);
        if (damage.starts_with("no table")) {
            fs::remove(newest / "checkpoint.json");
        } else {
            std::ofstream(newest / "checkpoint.json") << (damage == "no content" ? "" : "theirs");
        }
        if (damage.ends_with("note")) std::ofstream(newest / "note.txt") << "mine";
        const auto before = tree_of(newest);
        options.overwrite = true;
        Recorder recorder;
        train(options, recorder);
        EXPECT_TRUE(tree_of(newest.string() + ".damaged") == before) << damage;
        ASSERT_FALSE(recorder.notices.empty()) << damage;
        EXPECT_NE(recorder.notices[0].find("step-00000010.damaged"), std::string::npos) << damage;
        EXPECT_EQ(recorder.start.first_step, 1) << damage;
        EXPECT_FALSE(fault_of(newest)) << damage;
    }
    // One that is whole but for somebody's file in it is refused as before.
    TrainOptions options = trained("note");
    std::ofstream(checkpoint_folder(options.out, 10) / "note.txt") << "mine";
    const auto before = tree_of(options.out);
    options.overwrite = true;
    Recorder recorder;
    EXPECT_NE(message_of<IoError>([&] { train(options, recorder); }).find("note.txt"), std::string::npos);
    EXPECT_TRUE(tree_of(options.out) == before);
}

// A checkpoint that was damaged, or deleted by half, must not keep an older one from being gone on from.
TEST_F(RunFolderTest, TheNewestCompleteCheckpointIsTakenAndOthersAreNamed) {
    const TrainOptions whole = trained("whole");
    for (const char* damage :
         {"empty", "no table", "no weights", "truncated", "flipped", "no content", "earlier version"}) {
        const TrainOptions options = trained(damage);
        if (damage == std::string("earlier version")) {
            fs::remove(options.out / kManifestName);
            fs::remove(checkpoint_folder(options.out, 10) / "checkpoint.json");
        }
        const fs::path newest = checkpoint_folder(options.out, 10);
        const fs::path weights = newest / "weights.safetensors";
        const std::string kind = damage;
        if (kind == "empty") {
            for (const auto& file : fs::directory_iterator(newest)) fs::remove(file);
        } else if (kind == "no table") {
            fs::remove(newest / "checkpoint.json");
        } else if (kind == "no weights") {
            fs::remove(weights);
        } else if (kind == "truncated") {
            fs::resize_file(weights, 1000);
        } else if (kind == "flipped") {
            std::string bytes = read_all(weights);
            bytes[bytes.size() - 100] ^= 1;
            std::ofstream(weights, std::ios::binary) << bytes;
        } else if (kind == "no content") {
            std::ofstream(newest / "checkpoint.json") << "";
        }
        TrainOptions resumed = options;
        resumed.resume = options.out;
        Recorder recorder;
        EXPECT_EQ(train(resumed, recorder).last_step, 10) << kind;
        EXPECT_EQ(recorder.start.first_step, 6) << kind;
        ASSERT_GE(recorder.notices.size(), 1U) << kind;
        EXPECT_NE(recorder.notices[0].find("passed over: "), std::string::npos) << recorder.notices[0];
        EXPECT_NE(recorder.notices[0].find("step-00000010"), std::string::npos) << recorder.notices[0];
        for (const char* file : {"weights.safetensors", "optimizer.safetensors"})
            EXPECT_TRUE(read_all(newest / file) == read_all(checkpoint_folder(whole.out, 10) / file)) << kind;
        EXPECT_EQ(comparable_metrics(options.out), comparable_metrics(whole.out)) << kind;
        EXPECT_EQ(fs::exists(newest.string() + ".damaged"), kind != "empty") << kind;
    }
    for (const std::int64_t step : {5, 10})
        fs::remove(checkpoint_folder(whole.out, step) / "weights.safetensors");
    TrainOptions nothing = whole;
    nothing.resume = whole.out;
    Recorder recorder;
    const std::string message = message_of<IoError>([&] { train(nothing, recorder); });
    EXPECT_NE(message.find("holds no complete checkpoint: "), std::string::npos) << message;
    EXPECT_NE(message.find("step-00000010"), std::string::npos) << message;
}

// --overwrite in the wrong folder, stopped before it had anything of its own, costs nothing.
TEST_F(RunFolderTest, WhatWasToBeReplacedComesBackWhereTheNewRunHasNothing) {
    const TrainOptions options = trained("run");
    const std::string summary = read_all(options.out / "summary.json"),
                      metrics = read_all(options.out / "metrics.csv");
    const auto is_as_before = [&] {
        EXPECT_EQ(read_all(options.out / "summary.json"), summary);
        EXPECT_EQ(read_all(options.out / "metrics.csv"), metrics);
        EXPECT_EQ(newest_checkpoint_step(options.out), 10);
        EXPECT_FALSE(fault_of(checkpoint_folder(options.out, 10)));
    };
    TrainOptions next = tiny_run("run");
    next.overwrite = true;
    next.seed = 5;
    Recorder dies;
    dies.killed_in_step = 1;
    EXPECT_THROW(train(next, dies), Killed);
    is_as_before();
    next.final_checkpoint = false;
    Recorder stopped;
    stopped.stop_after = 2;
    const TrainResult nothing = train(next, stopped);
    EXPECT_TRUE(nothing.stopped);
    EXPECT_FALSE(nothing.is_kept);
    is_as_before();
    Recorder done;
    const TrainResult whole = train(next, done);
    EXPECT_EQ(whole.last_step, 20);
    EXPECT_TRUE(whole.is_kept);
    EXPECT_EQ(newest_checkpoint_step(options.out), 0);
    EXPECT_NE(read_all(options.out / "summary.json"), summary);
}

// A folder that was moved, copied or written by an earlier version is the run that it was.
TEST_F(RunFolderTest, GoesOnInACopyAndInAFolderOfAnEarlierVersion) {
    const TrainOptions options = trained("run");
    fs::copy(options.out, folder_.path() / "copy", fs::copy_options::recursive);
    fs::copy(options.out, folder_.path() / "earlier", fs::copy_options::recursive);
    fs::remove(folder_.path() / "earlier" / kManifestName);
    fs::remove(folder_.path() / "earlier" / kLockName);
    fs::rename(options.out, folder_.path() / "moved");
    for (const char* name : {"copy", "earlier", "moved"}) {
        TrainOptions longer = tiny_run(name);
        longer.schedule.total_steps = 12;
        longer.kept_checkpoints = 1;
        Recorder recorder;
        EXPECT_NE(message_of<InvalidArgument>([&] { train(longer, recorder); }).find("holds a run already"),
                  std::string::npos);
        longer.resume = longer.out;
        EXPECT_EQ(train(longer, recorder).last_step, 12) << name;
        EXPECT_EQ(list_checkpoints(longer.out / kCheckpointsName).size(), 1U) << name;
    }
}

// Whoever wrote the manifest: nothing outside of the folder is touched for it, and a broken one is named.
TEST_F(RunFolderTest, ABadManifestIsRefused) {
    const TrainOptions options = trained("run");
    const std::string good = read_all(options.out / kManifestName);
    const auto with = [&](const std::string& from, const std::string& to) {
        std::string text = good;
        text.replace(text.find(from), from.size(), to);
        return text;
    };
    for (const std::string& text :
         {std::string(), std::string("mine"), std::string("[]"), good.substr(0, good.size() / 2),
          with("metrics.csv", "../corpus.txt"), with("metrics.csv", "/etc/passwd"),
          with("metrics.csv", "notes.txt"), with("checkpoints/step-00000005", "checkpoints/../../x"),
          with("\"train\"", "\"other\""), with("\"layout\": 1", "\"layout\": 2"),
          with("\"owns\"", "\"own\"")}) {
        std::ofstream(options.out / kManifestName) << text;
        for (const bool overwrite : {false, true}) {
            TrainOptions next = options;
            next.overwrite = overwrite;
            Recorder recorder;
            const std::string message = message_of<FormatError>([&] { train(next, recorder); });
            EXPECT_NE(message.find(".flashoptim-run' cannot be used"), std::string::npos) << text << message;
            EXPECT_EQ(read_all(options.out / kManifestName), text);
        }
    }
    EXPECT_EQ(newest_checkpoint_step(options.out), 10);
}

// Tab completion adds a slash, scripts change folders, clusters link disks: it is the same run, which must
// not be refused, let alone deleted.
TEST_F(RunFolderTest, TheCheckpointIsThatOfTheRunByWhateverPathItIsNamed) {
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
            EXPECT_TRUE(
                RunFolder(options.out, kNobody).begin(find_checkpoint(named, kNobody), 10, 10, overwrite))
                << named;
            EXPECT_TRUE(RunFolder(folder_.path() / "linked", kNobody).begin(named, 10, 10, overwrite))
                << named;
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
TEST_F(RunFolderTest, CheckpointsOfAnotherRunAreNotRemovedUnasked) {
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
TEST_F(RunFolderTest, NoRowOfAnotherRunStaysInFront) {
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
