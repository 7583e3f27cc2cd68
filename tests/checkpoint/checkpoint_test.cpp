// Checkpoint folders: what is written comes back, a folder of anybody else's is never replaced, and
// readers and files move freely.
#include <gtest/gtest.h>

#include "support.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

TEST(Checkpoint, ComesBackAsItWasWritten) {
    const TestFolder folder;
    const std::vector<float> values{1, 2, 3};
    const std::vector<TensorFile> files{
        {.name = "weights",
         .tensors = {{.name = "w",
                      .dtype = StorageType::kFloat32,
                      .shape = {3},
                      .bytes = std::as_bytes(std::span(values))}},
         .metadata = {{"format", "pt"}}},
        {.name = "nothing", .tensors = {}},
    };
    const std::string metadata =
        "{ \"lr\": 1e-3,\n \"name\": \"\xC3\xA9\", \"big\": 18446744073709551615 }\n";
    const std::uint64_t byte_count = write(folder / "new/folders/ckpt", metadata, files);

    const auto checkpoint = Checkpoint::open(folder / "new/folders/ckpt");
    EXPECT_EQ(checkpoint.metadata_json(), metadata);
    EXPECT_EQ(checkpoint.folder(), folder / "new/folders/ckpt");
    EXPECT_EQ(checkpoint.file_names(), (std::vector<std::string>{"nothing", "weights"}));
    EXPECT_TRUE(checkpoint.contains("weights"));
    EXPECT_FALSE(checkpoint.contains("optimizer"));
    EXPECT_EQ(read_as<float>(checkpoint.file("weights"), "w"), values);
    EXPECT_EQ(checkpoint.file("weights").metadata(), files[0].metadata);
    EXPECT_TRUE(checkpoint.file("nothing").tensors().empty());
    expect_contains(message_of<FormatError>([&] { checkpoint.file("optimizer"); }),
                    "has no optimizer.safetensors");

    std::uint64_t on_disk = 0;
    for (const auto& entry : fs::directory_iterator(checkpoint.folder())) on_disk += entry.file_size();
    EXPECT_EQ(byte_count, on_disk);
    EXPECT_EQ(checkpoint.byte_count(), on_disk);
    EXPECT_EQ(names_in(checkpoint.folder()),
              (std::set<std::string>{"checkpoint.json", "metadata.json", "nothing.safetensors",
                                     "weights.safetensors"}));
    EXPECT_EQ(names_in(folder / "new/folders"), (std::set<std::string>{"ckpt"}));
}

TEST(Checkpoint, ACheckpointMayHoldMetadataOnly) {
    const TestFolder folder;
    write(folder / "ckpt", "{}", {});
    EXPECT_EQ(Checkpoint::open(folder / "ckpt").metadata_json(), "{}");
}

TEST(Checkpoint, IsReplacedByTheNextOneInBothWays) {
    for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
        const TestFolder folder;
        for (int step = 1; step <= 3; ++step) {
            StepCheckpoint(step).write_to(folder / "ckpt", how);
            EXPECT_EQ(step_in(folder / "ckpt"), step);
            EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"ckpt"}));
        }
    }
}

// Somebody may write `--out ~/models/`: what lies there must survive.
TEST(Checkpoint, NeverReplacesWhatIsNotACheckpoint) {
    const TestFolder folder;
    fs::create_directory(folder / "photos");
    write_raw(folder / "photos/cat.png", "cat");
    expect_contains(message_of<IoError>([&] { StepCheckpoint(1).write_to(folder / "photos"); }),
                    "holds other things and no readable checkpoint");
    EXPECT_EQ(read_raw(folder / "photos/cat.png"), "cat");

    write_raw(folder / "file", "text");
    expect_contains(message_of<IoError>([&] { StepCheckpoint(1).write_to(folder / "file"); }),
                    "a file has that name");
    EXPECT_EQ(read_raw(folder / "file"), "text");

    StepCheckpoint(1).write_to(folder / "ckpt");
    write_raw(folder / "ckpt/notes.txt", "my notes");
    expect_contains(message_of<IoError>([&] { StepCheckpoint(2).write_to(folder / "ckpt"); }),
                    "it holds 'notes.txt'");
    EXPECT_EQ(read_raw(folder / "ckpt/notes.txt"), "my notes");
    EXPECT_EQ(step_in(folder / "ckpt"), 1);
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"ckpt", "file", "photos"}));
}

TEST(Checkpoint, FillsAnEmptyFolderAndFollowsALink) {
    const TestFolder folder;
    fs::create_directory(folder / "empty");
    StepCheckpoint(1).write_to(folder / "empty");
    EXPECT_EQ(step_in(folder / "empty"), 1);

    fs::create_directory_symlink(folder / "empty", folder / "link");
    StepCheckpoint(2).write_to(folder / "link/");
    EXPECT_TRUE(fs::is_symlink(folder / "link"));
    EXPECT_EQ(step_in(folder / "link"), 2);
    EXPECT_EQ(step_in(folder / "empty"), 2);
}

// Somebody took away what others may read: the next checkpoint must not give it back.
TEST(Checkpoint, KeepsThePermissionsOfItsFolder) {
    const TestFolder folder(fast_place());
    for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
        for (const fs::perms mode : {fs::perms(0700), fs::perms(0750), fs::perms(0777), fs::perms(01770)}) {
            fs::create_directory(folder / "ckpt");
            for (int step = 1; step <= 2; ++step) {
                fs::permissions(folder / "ckpt", mode);
                StepCheckpoint(step).write_to(folder / "ckpt", how);
                EXPECT_EQ(fs::status(folder / "ckpt").permissions(), mode);
                EXPECT_EQ(step_in(folder / "ckpt"), step);
            }
            checkpoint::remove(folder / "ckpt");
        }
        // One that its owner has made read-only is replaced while it is empty, and is
        // then the owner's to write to.
        fs::create_directory(folder / "ckpt");
        fs::permissions(folder / "ckpt", fs::perms(0500));
        StepCheckpoint(3).write_to(folder / "ckpt", how);
        EXPECT_EQ(fs::status(folder / "ckpt").permissions(), fs::perms(0700));
        checkpoint::remove(folder / "ckpt");
    }
    EXPECT_TRUE(names_in(folder.path()).empty());
}

// Evaluation may read a checkpoint while training writes the next.
TEST(Checkpoint, AnOpenOneStaysReadableWhenItIsReplaced) {
    const TestFolder folder;
    StepCheckpoint(1).write_to(folder / "ckpt");
    const auto open = Checkpoint::open(folder / "ckpt");
    StepCheckpoint(2).write_to(folder / "ckpt");
    EXPECT_EQ(read_as<std::int32_t>(open.file("weights"), "layer.weight").front(), 1);
    EXPECT_EQ(step_in(folder / "ckpt"), 2);
}

TEST(Checkpoint, CanBeMovedAndCopied) {
    const TestFolder folder;
    StepCheckpoint(7).write_to(folder / "ckpt");
    fs::copy(folder / "ckpt", folder / "copy");
    fs::rename(folder / "ckpt", folder / "moved");
    EXPECT_EQ(step_in(folder / "copy"), 7);
    EXPECT_EQ(step_in(folder / "moved"), 7);
}

TEST(Checkpoint, BadInputIsRefusedBeforeTheDiskIsTouched) {
    const TestFolder folder;
    const auto refused = [&](std::string_view metadata, const std::vector<TensorFile>& files) {
        return message_of<InvalidArgument>([&] { write(folder / "ckpt", metadata, files); });
    };
    expect_contains(refused("", {}), "the metadata is not a JSON object");
    expect_contains(refused("{\"a\":}", {}), "the metadata is not valid JSON");
    expect_contains(refused("{\"a\":1,\"a\":2}", {}), "has the key \"a\" twice");
    expect_contains(refused("{}", {{.name = "", .tensors = {}}}), "cannot be a file name");
    expect_contains(refused("{}", {{.name = "../x", .tensors = {}}}), "cannot be a file name");
    expect_contains(refused("{}", {{.name = ".hidden", .tensors = {}}}), "cannot be a file name");
    expect_contains(refused("{}", {{.name = "a\xFF", .tensors = {}}}), "is not valid UTF-8");
    expect_contains(refused("{}", {{.name = "a", .tensors = {}}, {.name = "a", .tensors = {}}}),
                    "is given twice");
    expect_contains(refused("{}", {{.name = "a", .tensors = {{.name = "w", .shape = {1}, .bytes = {}}}}}),
                    "tensor \"w\" is given with 0 bytes");
    EXPECT_TRUE(names_in(folder.path()).empty());
}

TEST(Checkpoint, UnwritablePlacesAreOneLine) {
    const TestFolder folder;
    write_raw(folder / "file", "text");
    expect_contains(message_of<IoError>([&] { StepCheckpoint(1).write_to(folder / "file/ckpt"); }),
                    "file/ckpt");
    expect_contains(message_of<IoError>([&] { write_file(folder / "file/x.json", "{}"); }), "file/x.json");

    fs::create_directory(folder / "locked");
    StepCheckpoint(1).write_to(folder / "locked/ckpt");
    fs::permissions(folder.path(), fs::perms::all);
    fs::permissions(folder / "locked", fs::perms::owner_read | fs::perms::owner_exec |
                                           fs::perms::others_read | fs::perms::others_exec);
    const std::string report = in_child([&]() -> std::string {
        constexpr uid_t kNobody = 65534;
        if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) return "cannot drop root";
        std::string messages;
        for (const char* name : {"locked/ckpt", "locked/new"}) {
            try {
                StepCheckpoint(2).write_to(folder / name);
                messages += "nothing thrown ";
            } catch (const IoError& error) {
                messages += error.what();
            }
        }
        return messages;
    });
    fs::permissions(folder / "locked", fs::perms::owner_all);
    expect_contains(report, "locked/ckpt': Permission denied; choose a place you have access to");
    expect_contains(report, "locked/new': Permission denied; choose a place you have access to");
    EXPECT_EQ(step_in(folder / "locked/ckpt"), 1);
    EXPECT_EQ(names_in(folder / "locked"), (std::set<std::string>{"ckpt"}));
}

}  // namespace
}  // namespace flashoptim::checkpoint
