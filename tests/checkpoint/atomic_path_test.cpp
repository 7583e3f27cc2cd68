// What writers leave behind and how the next one deals with it: nothing piles up on the disk, nothing of the living is touched.
#include "atomic_path.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>

#include "support.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

TEST(WriteFile, ReplacesTheContentAndLeavesNothingElse) {
    const TestFolder folder;
    write_file(folder / "a/b/summary.json", "one");
    write_file(folder / "a/b/summary.json", "");
    EXPECT_EQ(read_raw(folder / "a/b/summary.json"), "");
    const std::string large(3'000'000, 'x');
    write_file(folder / "a/b/summary.json", large);
    EXPECT_EQ(read_raw(folder / "a/b/summary.json"), large);
    EXPECT_EQ(names_in(folder / "a/b"), (Names{"summary.json"}));
}

TEST(WriteFile, FollowsALinkAndRefusesAFolder) {
    const TestFolder folder;
    write_raw(folder / "real", "old");
    fs::create_symlink(folder / "real", folder / "link");
    write_file(folder / "link", "new");
    EXPECT_TRUE(fs::is_symlink(folder / "link"));
    EXPECT_EQ(read_raw(folder / "real"), "new");

    fs::create_directory(folder / "folder");
    expect_contains(message_of<IoError>([&] { write_file(folder / "folder", "x"); }),
                    "Is a directory; check the path");
    EXPECT_EQ(names_in(folder.path()), (Names{"folder", "link", "real"}));
}

// `--json /dev/stdout` has to work, and must not turn the device into a file.
TEST(WriteFile, WritesIntoDevices) {
    write_file("/dev/null", "text");
    EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST(Leftovers, OfDeadRunsGoWithTheNextWrite) {
    const TestFolder folder;
    fs::create_directories(folder / "ckpt.tmp-1-0/sub");
    write_raw(folder / "ckpt.tmp-1-0/weights.safetensors", "half");
    fs::create_directory(folder / "ckpt.old-1-0");
    write_raw(folder / "x.json.tmp-1-0", "half");
    StepCheckpoint(1).write_to(folder / "ckpt");
    EXPECT_EQ(names_in(folder.path()), (Names{"ckpt", "x.json.tmp-1-0"}));
    write_file(folder / "x.json", "{}");
    EXPECT_EQ(names_in(folder.path()), (Names{"ckpt", "x.json"}));
}

TEST(Leftovers, ThatOnlyLookSimilarStay) {
    const TestFolder folder;
    const Names others{"ckpt.tmp-mine", "ckpt.tmp", "ckpt2.tmp-1-0", "my-ckpt.tmp-1-0", "ckpt.tmp-1-0.bak"};
    for (const std::string& name : others) write_raw(folder / name, "mine");
    StepCheckpoint(1).write_to(folder / "ckpt");
    for (const std::string& name : others) EXPECT_EQ(read_raw(folder / name), "mine") << name;
}

// Two runs may write under one name: neither may delete what the other is writing.
TEST(Leftovers, OfTheLivingStay) {
    const TestFolder folder;
    fs::create_directory(folder / "ckpt.tmp-1-0");
    const FileDescriptor living = open_folder(folder / "ckpt.tmp-1-0");
    ASSERT_EQ(::flock(living.get(), LOCK_EX), 0);
    {
        TemporaryFolder first(folder / "ckpt");
        TemporaryFolder second(folder / "ckpt");
        first.create("a").sync();
        second.create("b").sync();
        EXPECT_EQ(names_in(folder.path()).size(), 3U);
        first.replace_target(Replace::kSwapIfPossible);
        second.replace_target(Replace::kSwapIfPossible);
    }
    EXPECT_EQ(names_in(folder / "ckpt"), (Names{"b"}));
    EXPECT_EQ(names_in(folder.path()), (Names{"ckpt", "ckpt.tmp-1-0"}));
}

TEST(Recover, PutsBackWhatAKilledRunHadMovedAside) {
    const TestFolder folder;
    StepCheckpoint(4).write_to(folder / "ckpt");
    fs::create_directory(folder / "ckpt.tmp-1-0");
    fs::rename(folder / "ckpt", folder / "ckpt.old-1-0");
    EXPECT_TRUE(recover(folder / "ckpt/"));
    EXPECT_EQ(step_in(folder / "ckpt"), 4);

    fs::rename(folder / "ckpt", folder / "ckpt.old-77-3");
    EXPECT_EQ(step_in(folder / "ckpt"), 4);  // opening recovers by itself

    fs::rename(folder / "ckpt", folder / "ckpt.old-1-0");
    StepCheckpoint(5).write_to(folder / "ckpt");  // and so does writing
    EXPECT_EQ(step_in(folder / "ckpt"), 5);
    EXPECT_EQ(names_in(folder.path()), (Names{"ckpt"}));
}

TEST(Recover, SaysWhenThereIsNothing) {
    const TestFolder folder;
    EXPECT_FALSE(recover(folder / "ckpt"));
    EXPECT_FALSE(recover(folder / "no/such/place"));
}

}  // namespace
}  // namespace flashoptim::checkpoint
