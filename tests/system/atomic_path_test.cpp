// How files and folders take their place, whatever lies there, and what links, odd
// names and long names do to it.
#include "flashoptim/system/atomic_path.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "../checkpoint/support.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

TEST(WriteFile, ReplacesTheContentAndLeavesNothingElse) {
    const TestFolder folder(fast_place());
    write_file(folder / "a/b/summary.json", "one");
    write_file(folder / "a/b/summary.json", "");
    EXPECT_EQ(read_raw(folder / "a/b/summary.json"), "");
    const std::string large(3'000'000, 'x');
    write_file(folder / "a/b/summary.json", large);
    EXPECT_EQ(read_raw(folder / "a/b/summary.json"), large);
    EXPECT_EQ(names_in(folder / "a/b"), (Names{"summary.json"}));
}

TEST(WriteFile, FollowsALinkAndRefusesAFolder) {
    const TestFolder folder(fast_place());
    write_raw(folder / "real", "old");
    fs::create_symlink(folder / "real", folder / "link");
    write_file(folder / "link", "new");
    EXPECT_TRUE(fs::is_symlink(folder / "link"));
    EXPECT_EQ(read_raw(folder / "real"), "new");

    fs::create_directory(folder / "folder");
    expect_contains(message_of<IoError>([&] { write_file(folder / "folder", "x"); }),
                    "Is a directory; check the path");
    expect_contains(message_of<IoError>([&] { write_file("/", "x"); }), "Is a directory; check the path");
    expect_contains(message_of<IoError>([&] { write_file("", "x"); }), "cannot create ''");
    EXPECT_EQ(names_in(folder.path()), (Names{"folder", "link", "real"}));
}

// Somebody made the link to another disk before the first save: the link must lead there afterwards.
TEST(WriteFile, FollowsALinkThatLeadsNowhereYet) {
    const TestFolder folder(fast_place());
    fs::create_directories(folder / "disk/deep");
    fs::create_symlink("disk/second", folder / "first");
    fs::create_symlink("../disk/deep/real", folder / "disk/second");
    write_file(folder / "first", "new");
    EXPECT_TRUE(fs::is_symlink(folder / "first"));
    EXPECT_TRUE(fs::is_symlink(folder / "disk/second"));
    EXPECT_EQ(read_raw(folder / "disk/deep/real"), "new");

    fs::create_directory_symlink(folder / "disk/deep/ckpt", folder / "ckpt");
    for (int step = 1; step <= 2; ++step) {
        StepCheckpoint(step).write_to(folder / "ckpt/");
        EXPECT_TRUE(fs::is_symlink(folder / "ckpt"));
        EXPECT_EQ(step_in(folder / "disk/deep/ckpt"), step);
    }
    EXPECT_EQ(names_in(folder / "disk/deep"), (Names{"ckpt", "real"}));

    fs::create_symlink("circle", folder / "circle");
    expect_contains(message_of<IoError>([&] { write_file(folder / "circle", "x"); }), "circle");
    expect_contains(message_of<IoError>([&] { StepCheckpoint(1).write_to(folder / "circle"); }), "circle");
    expect_contains(message_of<IoError>([&] { Checkpoint::open(folder / "circle"); }), "there is nothing");
}

// Somebody took away what others may read: a new content must not give it back.
TEST(WriteFile, KeepsThePermissions) {
    const TestFolder folder(fast_place());
    write_raw(folder / "x", "old");
    ASSERT_EQ(::chmod((folder / "x").c_str(), 0600), 0);
    write_file(folder / "x", "new");
    EXPECT_EQ(fs::status(folder / "x").permissions(), fs::perms::owner_read | fs::perms::owner_write);
    EXPECT_EQ(read_raw(folder / "x"), "new");
}

TEST(WriteFile, LeavesTheOtherNameOfAFileAsItIs) {
    const TestFolder folder(fast_place());
    write_raw(folder / "mine", "old");
    fs::create_hard_link(folder / "mine", folder / "x");
    write_file(folder / "x", "new");
    EXPECT_EQ(read_raw(folder / "mine"), "old");
}

// `--json /dev/stdout` has to work, and must not turn the device into a file.
TEST(WriteFile, WritesIntoDevices) {
    write_file("/dev/null", "text");
    EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

// `program --json /dev/stdout >> results.log`: what the log held before must not go.
TEST(WriteFile, WritesIntoWhatTheProcessHasOpenWhereItStands) {
    if (!fs::exists("/dev/fd")) GTEST_SKIP() << "there is no /dev/fd";
    const TestFolder folder(fast_place());
    for (const char* const place : {"/dev/fd/", "/proc/self/fd/"}) {
        if (!fs::exists(place)) continue;
        write_raw(folder / "log", "old,");
        const FileDescriptor log(::open((folder / "log").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
        const fs::path name = place + std::to_string(log.get());
        fs::create_symlink(name, folder / "link");
        write_all(log, "before,", name);
        write_file(name, "one,");
        write_file(folder / "link", "two,");
        write_all(log, "after", name);
        EXPECT_EQ(read_raw(folder / "log"), "old,before,one,two,after") << place;
        EXPECT_EQ(names_in(folder.path()), (Names{"link", "log"}));
        fs::remove(folder / "link");
    }
    EXPECT_FALSE(message_of<IoError>([] { write_file("/dev/fd/987654", "x"); }).empty());
}

// Names that shells, other systems and people make; the longest that the system has.
TEST(Names, AnyNameThatAFileMayHaveIsATarget) {
    const TestFolder folder(fast_place());
    const std::string names[] = {"a\nb",     "\xC3\xA9\xF0\x9F\x94\xA5",
                                 "\xFF\xFE", "-rf",
                                 "*",        " ",
                                 "...",      "a b",
                                 "\\",       "x\t'\"",
                                 ".hidden",  std::string(255, 'n'),
                                 "CON",      "new",
                                 "old",      "journal",
                                 "a:b",      ".tmp-1-0",
                                 "x.old-1-1"};
    for (const std::string& name : names) {
        SCOPED_TRACE(name);
        for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
            for (int step = 1; step <= 2; ++step) StepCheckpoint(step, 10).write_to(folder / name, how);
            EXPECT_EQ(step_in(folder / name), 2);
            EXPECT_TRUE(checkpoint::exists(folder / name));
        }
        EXPECT_EQ(names_in(folder.path()), (Names{name}));
        checkpoint::remove(folder / name);
        write_file(folder / name, "text");
        EXPECT_EQ(read_raw(folder / name), "text");
        EXPECT_EQ(names_in(folder.path()), (Names{name}));
        fs::remove(folder / name);
    }
    expect_contains(message_of<IoError>([&] { write_file(folder / std::string(256, 'n'), "x"); }),
                    "File name too long; check the path");
    EXPECT_TRUE(names_in(folder.path()).empty());
}

TEST(Names, DotsAndSlashesAtTheEndMeanTheFolder) {
    const TestFolder folder(fast_place());
    StepCheckpoint(1).write_to(folder / "a/ckpt");
    fs::create_directory(folder / "a/other");
    int step = 1;
    for (const char* path :
         {"a/ckpt/", "a/ckpt//", "a/ckpt/.", "a/./ckpt", "a/other/../ckpt", "a/ckpt/../ckpt"}) {
        SCOPED_TRACE(path);
        EXPECT_EQ(step_in(folder / path), step);
        StepCheckpoint(++step).write_to(folder / path);
        EXPECT_EQ(step_in(folder / "a/ckpt"), step);
    }
    EXPECT_EQ(names_in(folder / "a"), (Names{"ckpt", "other"}));
}

// Two runs may write under one name: neither may delete what the other is writing.
TEST(Sharing, TwoWritersOfOneTarget) {
    for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
        const TestFolder folder(fast_place());
        const auto check = [](const FileDescriptor& old) {
            std::vector<std::string> names;
            list_names(old, [&names](const char* name) { names.emplace_back(name); });
            return names;
        };
        {
            TemporaryFolder first(folder / "ckpt");
            TemporaryFolder second(folder / "ckpt");
            first.create("a").sync();
            second.create("b").sync();
            EXPECT_EQ(names_in(folder.path()).size(), 2U);
            first.replace_target(how, check);
            second.replace_target(how, check);
        }
        EXPECT_EQ(names_in(folder / "ckpt"), (Names{"b"}));
        EXPECT_EQ(names_in(folder.path()), (Names{"ckpt"}));
    }
}

// Saving takes minutes, and somebody may put a file into the old checkpoint meanwhile. It must
// not go with the checkpoint.
TEST(Sharing, WhatComesIntoTheOldFolderWhileTheNewOneIsWrittenStays) {
    for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
        for (const int appears_in_check : {1, 2}) {
            const TestFolder folder(fast_place());
            StepCheckpoint(1).write_to(folder / "ckpt");
            int checks = 0;
            const auto check = [&](const FileDescriptor& old) {
                if (++checks == appears_in_check) {
                    const FileDescriptor notes(::openat(old.get(), "notes.txt", O_WRONLY | O_CREAT, 0666));
                    write_all(notes, "my notes", "notes.txt");
                }
                std::vector<std::string> names;
                list_names(old, [&names](const char* name) {
                    if (std::string_view(name) == "notes.txt") throw IoError("that is not mine");
                    names.emplace_back(name);
                });
                return names;
            };
            {
                TemporaryFolder next(folder / "ckpt");
                next.create("b").sync();
                EXPECT_THROW(next.replace_target(how, check), IoError);
            }
            EXPECT_EQ(checks, appears_in_check);
            EXPECT_EQ(step_in(folder / "ckpt"), 1);
            EXPECT_EQ(read_raw(folder / "ckpt/notes.txt"), "my notes");
            EXPECT_EQ(names_in(folder.path()), (Names{"ckpt"}));
        }
    }
}

TEST(Remove, TakesACheckpointAndNothingElse) {
    const TestFolder folder(fast_place());
    StepCheckpoint(1).write_to(folder / "ckpt");
    fs::create_directory_symlink(folder / "ckpt", folder / "link");
    expect_contains(message_of<IoError>([&] { checkpoint::remove(folder / "link"); }), "it is a link");
    write_raw(folder / "ckpt/notes.txt", "my notes");
    expect_contains(message_of<IoError>([&] { checkpoint::remove(folder / "ckpt"); }),
                    "it holds 'notes.txt'");
    EXPECT_EQ(step_in(folder / "ckpt"), 1);
    fs::remove(folder / "ckpt/notes.txt");
    fs::create_directory(folder / "photos");
    expect_contains(message_of<IoError>([&] { checkpoint::remove(folder / "photos"); }),
                    "the folder is empty");
    write_raw(folder / "photos/cat.png", "cat");
    expect_contains(message_of<IoError>([&] { checkpoint::remove(folder / "photos"); }),
                    "holds other things");
    write_raw(folder / "file", "text");
    message_of<IoError>([&] { checkpoint::remove(folder / "file"); });
    EXPECT_EQ(names_in(folder.path()), (Names{"ckpt", "file", "link", "photos"}));
    checkpoint::remove(folder / "ckpt");
    checkpoint::remove(folder / "ckpt");  // there is none
    EXPECT_EQ(names_in(folder.path()), (Names{"file", "link", "photos"}));
    EXPECT_EQ(read_raw(folder / "photos/cat.png"), "cat");
}

// A name in the table does not make a folder, a link or a pipe a file of ours.
TEST(Remove, AndReplaceOnlyTakeFiles) {
    const TestFolder folder(fast_place());
    const fs::path weights = folder / "ckpt/weights.safetensors";
    const std::pair<const char*, std::function<void()>> kinds[] = {
        {"folder", [&] { fs::create_directory(weights); }},
        {"link", [&] { fs::create_symlink("/big/disk/weights", weights); }},
        {"pipe", [&] { ASSERT_EQ(::mkfifo(weights.c_str(), 0666), 0); }}};
    for (const auto& [kind, make] : kinds) {
        SCOPED_TRACE(kind);
        StepCheckpoint(1).write_to(folder / "ckpt");
        fs::remove(weights);
        make();
        expect_contains(message_of<IoError>([&] { checkpoint::remove(folder / "ckpt"); }),
                        "it holds 'weights.safetensors'");
        expect_contains(message_of<IoError>([&] { StepCheckpoint(2).write_to(folder / "ckpt"); }),
                        "it holds 'weights.safetensors'");
        EXPECT_TRUE(is_taken(weights));
        EXPECT_EQ(names_in(folder.path()), (Names{"ckpt"}));
        fs::remove(weights);
    }
}

// A process that has as many files open as it may loses nothing by a save, and finds no rest of it.
TEST(Descriptors, WhereThereAreTooFewNothingChanges) {
#if defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "the sanitizer of undefined behaviour opens a pipe to look at an object's type";
#endif
    const TestFolder folder(fast_place());
    const std::string report = in_child([&]() -> std::string {
        rlimit limit{};
        if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return "cannot read the limit";
        const rlim_t usual = limit.rlim_cur;
        const FileDescriptor first_free = open_existing(folder.path());
        const auto with_files = [&](rlim_t more, auto action) {
            limit.rlim_cur = static_cast<rlim_t>(first_free.get()) + 1 + more;
            bool is_done = ::setrlimit(RLIMIT_NOFILE, &limit) == 0;
            try {
                action();
            } catch (const IoError&) {
                is_done = false;
            }
            limit.rlim_cur = usual;
            return ::setrlimit(RLIMIT_NOFILE, &limit) == 0 && is_done;
        };
        int failures = 0;
        for (rlim_t more = 0; more < 12; ++more) {
            const std::string here = " with " + std::to_string(more) + " files";
            const bool is_first = with_files(more, [&] { StepCheckpoint(1, 10).write_to(folder / "ckpt"); });
            if (names_in(folder.path()).size() != (is_first ? 1U : 0U))
                return "a first save left more" + here;
            StepCheckpoint(1, 10).write_to(folder / "ckpt");
            for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
                const bool is_second =
                    with_files(more, [&] { StepCheckpoint(2, 10).write_to(folder / "ckpt", how); });
                failures += is_second ? 0 : 1;
                if (step_in(folder / "ckpt") != (is_second ? 2 : 1)) return "a checkpoint was lost" + here;
                if (names_in(folder.path()) != Names{"ckpt"}) return "a save left more" + here;
                StepCheckpoint(1, 10).write_to(folder / "ckpt");
            }
            const bool is_removed = with_files(more, [&] { checkpoint::remove(folder / "ckpt"); });
            if (names_in(folder.path()).size() != (is_removed ? 0U : 1U)) return "a removal left more" + here;
            if (!is_removed) checkpoint::remove(folder / "ckpt");
        }
        return failures > 0 ? "" : "nothing failed";
    });
    EXPECT_EQ(report, "");
}

}  // namespace
}  // namespace flashoptim::checkpoint
