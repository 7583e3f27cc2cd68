// A full disk costs the user the checkpoint that did not fit and nothing else. At the end: a disk
// in the place of a checkpoint.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <cerrno>
#include <csignal>

#include "support.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kManyElements = 1'000'000;  // 4 MB in each of the two files

// Writes a checkpoint that does not fit over one that did. Reports what is not as promised.
std::string write_too_much(const fs::path& folder) {
    const StepCheckpoint small(1, 100);
    const StepCheckpoint large(2, kManyElements);
    std::string report;
    for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
        small.write_to(folder / "ckpt", how);
        try {
            large.write_to(folder / "ckpt", how);
            report += "nothing was thrown; ";
        } catch (const IoError& error) {
            const std::string message = error.what();
            if (message.find("cannot write '" + (folder / "ckpt").string() +
                             "': no space left; it needs 8") == std::string::npos) {
                report += "unclear message: " + message + "; ";
            }
        }
        if (step_in(folder / "ckpt") != 1) report += "the old checkpoint was touched; ";
        if (names_in(folder) != std::set<std::string>{"ckpt"}) report += "leftovers; ";
    }
    small.write_to(folder / "ckpt");
    try {
        write_file(folder / "x.json", std::string(kManyElements, 'x'));
        report += "nothing was thrown for the file; ";
    } catch (const IoError& error) {
        const std::string message = error.what();
        if (message.find("x.json': no space left; it needs 1000000 bytes") == std::string::npos) {
            report += "unclear message: " + message + "; ";
        }
    }
    if (names_in(folder) != std::set<std::string>{"ckpt"}) report += "leftovers of the file; ";
    return report;
}

// Runs `action` in a child that sees `options` of a small memory file system at `folder`.
// "skip" where that is not allowed.
template <typename Action>
std::string on_small_disk(const fs::path& folder, const char* options, Action action) {
    return in_child([&]() -> std::string {
        if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            ::mount("tmpfs", folder.c_str(), "tmpfs", 0, options) != 0) {
            return "skip";
        }
        return action();
    });
}

TEST(DiskFull, LeavesTheOldCheckpointAndNoRest) {
    const TestFolder folder;
    const std::string report =
        on_small_disk(folder.path(), "size=512k", [&] { return write_too_much(folder.path()); });
    if (report == "skip") GTEST_SKIP() << "mounting a small file system is not allowed";
    EXPECT_EQ(report, "");
}

// Who has a full disk removes checkpoints from it.
std::string remove_from_full_disk(const fs::path& folder) {
    StepCheckpoint(1, 100).write_to(folder / "ckpt");
    StepCheckpoint(1, 100).write_to(folder / "shared");
    write_raw(folder / "shared/mine", "");
    for (int number = 0; number < 1000; ++number) write_raw(folder / ("filler" + std::to_string(number)), "");
    std::ofstream(folder / "filler0", std::ios::binary) << std::string(std::size_t{1} << 20, 'x');
    const auto before = names_in(folder);
    try {
        StepCheckpoint(2, 10).write_to(folder / "ckpt");
        return "the disk is not full";
    } catch (const IoError&) {
        if (step_in(folder / "ckpt") != 1) return "the old checkpoint was touched";
    }
    try {
        checkpoint::remove(folder / "shared");
        return "a file of somebody's was removed";
    } catch (const IoError& error) {
        if (std::string(error.what()).find("mine") == std::string::npos) return error.what();
    }
    if (step_in(folder / "shared") != 1 || names_in(folder) != before) return "a refusal changed something";
    checkpoint::remove(folder / "ckpt");
    auto expected = before;
    expected.erase("ckpt");
    if (names_in(folder) != expected) return "leftovers, or the checkpoint itself";
    // What a removal that was killed has left is the table of contents and any of the files.
    fs::remove(folder / "shared/mine");
    fs::remove(folder / "shared/metadata.json");
    fs::remove(folder / "shared/weights.safetensors");
    checkpoint::remove(folder / "shared");
    return checkpoint::exists(folder / "shared") ? "the rest of a checkpoint stays" : "";
}

TEST(DiskFull, CheckpointsCanBeRemoved) {
    const TestFolder folder;
    for (const char* const options : {"size=512k", "nr_inodes=100"}) {
        const std::string report =
            on_small_disk(folder.path(), options, [&] { return remove_from_full_disk(folder.path()); });
        if (report == "skip") GTEST_SKIP() << "mounting a small file system is not allowed";
        EXPECT_EQ(report, "") << options;
    }
}

TEST(DiskFull, NoFreeInodesIsTheSame) {
    const TestFolder folder;
    const std::string report = on_small_disk(folder.path(), "nr_inodes=9", [&]() -> std::string {
        const StepCheckpoint first(1, 10);
        // The root, a workspace with its journal, a folder and four files are eight:
        // the next finds three inodes.
        first.write_to(folder / "ckpt");
        try {
            StepCheckpoint(2, 10).write_to(folder / "ckpt");
            return "nothing was thrown";
        } catch (const IoError& error) {
            if (std::string(error.what()).find("no space left") == std::string::npos) return error.what();
        }
        return step_in(folder / "ckpt") == 1 && names_in(folder.path()).size() == 1 ? ""
                                                                                    : "something was lost";
    });
    if (report == "skip") GTEST_SKIP() << "mounting a small file system is not allowed";
    EXPECT_EQ(report, "");
}

// The limit on the size of a file acts like a full disk and can be set by anybody.
TEST(DiskFull, TheLimitOnFileSizesIsTheSame) {
    const TestFolder folder;
    const std::string report = in_child([&]() -> std::string {
        std::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{.rlim_cur = 100'000, .rlim_max = 100'000};
        if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return "cannot set the limit";
        return write_too_much(folder.path());
    });
    EXPECT_EQ(report, "");
}

// The mount of a container is an empty folder that nothing can take the place of.
TEST(MountedDisk, CannotBeReplacedButWrittenInto) {
    const TestFolder folder;
    fs::create_directory(folder / "ckpt");
    const std::string report = on_small_disk(folder / "ckpt", "size=1m", [&]() -> std::string {
        for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
            try {
                StepCheckpoint(1).write_to(folder / "ckpt", how);
                return "nothing was thrown";
            } catch (const IoError& error) {
                if (std::string(error.what()).find("choose a place inside it") == std::string::npos)
                    return error.what();
            }
        }
        StepCheckpoint(1).write_to(folder / "ckpt/inside");
        const bool is_all = names_in(folder.path()).size() == 1 && names_in(folder / "ckpt").size() == 1;
        return is_all && step_in(folder / "ckpt/inside") == 1 ? "" : "leftovers";
    });
    if (report == "skip") GTEST_SKIP() << "mounting a small file system is not allowed";
    EXPECT_EQ(report, "");
}

TEST(DiskFull, AFullDeviceIsOneLine) {
    if (!fs::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
    expect_contains(message_of<IoError>([] { write_file("/dev/full", "text"); }),
                    "cannot write '/dev/full': no space left; it needs 4 bytes");
}

}  // namespace
}  // namespace flashoptim::checkpoint
