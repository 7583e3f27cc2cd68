// Leftovers of killed saves. The next save removes what is proved to be one, so that nothing piles up on the
// disk. Files that only look like one stay, byte for byte.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cctype>
#include <csignal>
#include <functional>
#include <map>

#include "killed_saves.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

/// The journal that belongs to a workspace of "ckpt" at `path`.
std::string journal_at(const fs::path& path, const std::vector<std::string>& names = {}) {
    std::string text = journal_opening("ckpt", path.filename().string());
    for (const std::string& name : names) text += name + '\0';
    return text;
}

struct State {
    std::string name;
    std::function<void(const TestFolder&, const std::string& target)> make;
};

// Every state in which a killed save can leave its workspace while the target is there or was never there.
std::vector<State> states_of_killed_saves() {
    std::vector<State> states = {
        {"no journal yet", [](const auto& f, const auto& t) { fs::create_directory(f / name_of(t)); }},
        {"nothing made yet", [](const auto& f, const auto& t) { make_workspace(f, t, {}); }},
        {"a name noted and no file made",
         [](const auto& f, const auto& t) { make_workspace(f, t, {"weights.safetensors"}); }},
        {"a file half written",
         [](const auto& f, const auto& t) { write_raw(make_workspace(f, t, {}) / "new", "half"); }},
        {"an empty folder",
         [](const auto& f, const auto& t) { fs::create_directory(make_workspace(f, t, {}) / "new"); }},
        {"a folder half written",
         [](const auto& f, const auto& t) {
             const auto path = make_workspace(f, t, {"weights.safetensors", "metadata.json"});
             fs::create_directory(path / "new");
             write_raw(path / "new/weights.safetensors", "half");
         }},
        {"a replaced folder",
         [](const auto& f, const auto& t) {
             StepCheckpoint(7).write_to(make_workspace(f, t, kFiles) / "new");
         }},
        {"a folder moved aside and replaced",
         [](const auto& f, const auto& t) {
             StepCheckpoint(7).write_to(make_workspace(f, t, kFiles) / "old");
         }},
        {"a name half noted", [](const auto& f, const auto& t) {
             write_raw(make_workspace(f, t, {}) / "journal", journal_of(t) + "weights.saf");
         }}};
    for (std::size_t length = 0; length < journal_of("ckpt").size(); length += 7) {
        states.push_back(
            {"a journal of " + std::to_string(length) + " bytes", [length](const auto& f, const auto& t) {
                 write_raw(make_workspace(f, t, {}) / "journal", journal_of(t).substr(0, length));
             }});
    }
    return states;
}

TEST(Leftovers, OfKilledSavesGoWithTheNextOne) {
    for (const State& state : states_of_killed_saves()) {
        SCOPED_TRACE(state.name);
        const TestFolder folder(fast_place());
        state.make(folder, "ckpt");
        EXPECT_THROW(Checkpoint::open(folder / "ckpt"),
                     IoError);  // none of these is a checkpoint to go on from
        EXPECT_EQ(names_in(folder.path()), (Names{name_of("ckpt")}));
        StepCheckpoint(1).write_to(folder / "ckpt");
        EXPECT_EQ(names_in(folder.path()), (Names{"ckpt"}));
        state.make(folder, "ckpt");
        StepCheckpoint(2).write_to(folder / "ckpt");
        EXPECT_EQ(names_in(folder.path()), (Names{"ckpt"}));
        state.make(folder, "x.json");
        write_file(folder / "x.json", "{}");
        EXPECT_EQ(names_in(folder.path()), (Names{"ckpt", "x.json"}));
        EXPECT_EQ(step_in(folder / "ckpt"), 2);
    }
}

struct NearMiss {
    std::string name;  // of what lies beside the target
    std::function<void(const fs::path&)> make;
};

void make_mine(const fs::path& path) { write_raw(path, "mine"); }
void make_my_folder(const fs::path& path) {
    fs::create_directories(path / "sub");
    write_raw(path / "sub/notes.txt", "mine");
    write_raw(path / "weights.safetensors", "mine");
}

std::vector<NearMiss> near_misses() {
    std::vector<NearMiss> all;
    const auto add = [&all](const std::string& name) {
        all.push_back({name, make_mine});
        all.push_back({name, make_my_folder});
    };
    // What people, editors, other programs and an earlier version of this one call their files.
    for (const char* suffix : {".old",
                               ".old-2024",
                               ".old-2024-05-01",
                               ".old-1-0",
                               ".old-",
                               ".old-0",
                               ".old--",
                               ".tmp",
                               ".tmp-",
                               ".tmp-1-2",
                               ".tmp-1-0",
                               ".tmp-20240501",
                               ".tmp-mine",
                               ".bak",
                               "~",
                               ".1",
                               ".new",
                               ".journal",
                               ".lock",
                               "-old",
                               " (copy)",
                               ".old-77-3.tar",
                               ".tmp-1-0.bak",
                               ".swp",
                               ".part",
                               ".partial",
                               ".orig"}) {
        add(std::string("ckpt") + suffix);
        add(std::string("x.json") + suffix);
    }
    for (const char* name : {".flashoptim", ".flashoptim-", ".flashoptim-cache", ".flashoptim-tmp-1-2",
                             "flashoptim", ".ckpt.tmp", ".ckpt.swp", "ckpt2.tmp-1-0", "my-ckpt.old-1-0",
                             "tmp", "new", "old", "journal", ".flashoptim-2024-05-01"}) {
        add(name);
    }
    // Our own names with one character changed: complete workspaces, whose journal is that of
    // the right name or of this one.
    const std::string right = name_of("ckpt");
    const auto add_workspace = [&all](const std::string& name, const std::string& journal) {
        all.push_back({name, [journal](const fs::path& path) {
                           fs::create_directories(path / "new");
                           write_raw(path / "journal", journal);
                       }});
    };
    for (std::size_t place = 0; place < right.size(); ++place) {
        std::string name = right;
        name[place] = name[place] == '7' ? '8' : '7';
        add_workspace(name, journal_opening("ckpt", place % 2 == 0 ? name : right));
    }
    std::string loud = right;
    for (char& character : loud) character = static_cast<char>(std::toupper(character));
    for (const std::string& name : {right.substr(1), right + "0", right.substr(0, right.size() - 1),
                                    right + ".bak", right + "\n", "x" + right, loud}) {
        add_workspace(name, journal_of("ckpt"));
    }
    // A right name, and what lies there is not ours.
    const auto add_right = [&all](std::function<void(const fs::path&)> make) {
        std::string random = std::to_string(all.size());
        random.insert(0, kRandom, 0, kRandom.size() - random.size());
        all.push_back({workspace_name("ckpt", random), std::move(make)});
    };
    const auto make_mine_beside = [](const fs::path& path) {
        make_my_folder(path.string() + "-mine");
        return path.filename().string() + "-mine";
    };
    add_right(make_mine);
    add_right(make_my_folder);
    add_right([](const fs::path& path) { write_raw(path, ""); });
    add_right([](const fs::path& path) { write_raw(path, journal_at(path)); });
    add_right([](const fs::path& path) { fs::create_symlink("nowhere", path); });
    add_right([=](const fs::path& path) {
        const std::string mine = make_mine_beside(path);
        write_raw(path.parent_path() / mine / "journal", journal_at(path));
        fs::create_directory_symlink(mine, path);
    });
    add_right([](const fs::path& path) { ASSERT_EQ(::mkfifo(path.c_str(), 0666), 0); });
    // A folder with a journal that is not the one, or with more in it than the journal says.
    const auto with_journal = [&](std::function<std::string(const fs::path&)> journal,
                                  std::function<void(const fs::path&)> more = nullptr) {
        add_right([journal = std::move(journal), more = std::move(more)](const fs::path& path) {
            fs::create_directory(path);
            write_raw(path / "journal", journal(path));
            if (more) more(path);
        });
    };
    const auto naming = [](std::vector<std::string> names) {
        return [names = std::move(names)](const fs::path& path) { return journal_at(path, names); };
    };
    with_journal([](const auto&) { return "my journal, 5 May"; });
    with_journal([](const auto& path) { return journal_opening("ckpt2", path.filename().string()); });
    with_journal([](const auto&) { return journal_opening("ckpt", name_of("ckpt2")); });
    with_journal([](const auto&) { return journal_of("ckpt"); });
    with_journal([](const auto& path) { return journal_at(path).substr(1); });
    with_journal([](const auto& path) { return "\n" + journal_at(path); });
    for (const char* name : {"../x", "/etc/passwd", "..", ".", "", "new/x"}) with_journal(naming({name}));
    const auto put = [](const char* entry) {
        return [entry](const fs::path& path) { write_raw(path / entry, "mine"); };
    };
    with_journal(naming({}), put("notes.txt"));
    with_journal(naming({"notes.txt"}), put("notes.txt"));
    with_journal(naming({}), put("old"));
    with_journal([](const auto&) { return ""; }, put("new"));
    with_journal([](const auto& path) { return journal_at(path).substr(0, 20); }, put("new"));
    with_journal(naming({}), [](const auto& path) { make_my_folder(path / "new"); });
    with_journal(naming({}), [](const auto& path) { make_my_folder(path / "old"); });
    with_journal(naming({"sub", "weights.safetensors"}),
                 [](const auto& path) { make_my_folder(path / "new"); });
    with_journal(naming(kFiles), [](const auto& path) {
        StepCheckpoint(3).write_to(path / "new");
        write_raw(path / "new/notes.txt", "mine");
    });
    for (const char* entry : {"new", "old", "new/weights.safetensors"}) {
        with_journal(naming(kFiles), [=](const auto& path) {
            fs::create_directories((path / entry).parent_path());
            fs::create_symlink(path.parent_path() / make_mine_beside(path), path / entry);
        });
        with_journal(naming(kFiles), [=](const auto& path) {
            fs::create_directories((path / entry).parent_path());
            ASSERT_EQ(::mkfifo((path / entry).c_str(), 0666), 0);
        });
    }
    add_right([](const fs::path& path) {
        fs::create_directory(path);
        write_raw(path.string() + "-mine", journal_at(path));
        fs::create_symlink("../" + path.filename().string() + "-mine", path / "journal");
    });
    add_right([](const fs::path& path) {
        fs::create_directory(path);
        ASSERT_EQ(::mkfifo((path / "journal").c_str(), 0666), 0);
    });
    add_right([](const fs::path& path) { fs::create_directories(path / "journal"); });
    return all;
}

// Whatever the library is asked to do beside a near miss, that is what it was.
TEST(Leftovers, ThatOnlyLookLikeOursStay) {
    const auto all = near_misses();
    EXPECT_GT(all.size(), 200U);
    const TestFolder files(fast_place()),
        folders(fast_place());  // most names are there as a file and as a folder
    for (const NearMiss& near_miss : all) {
        near_miss.make((is_taken(files / near_miss.name) ? folders : files) / near_miss.name);
    }
    for (const TestFolder* folder : {&files, &folders}) {
        const fs::path ckpt = *folder / "ckpt", file = *folder / "x.json";
        const auto before = snapshot(folder->path());
        const auto expect_untouched = [&](const char* after) {
            auto now = snapshot(folder->path());
            for (const auto& [path, what] : before) {
                EXPECT_EQ(now[path], what) << path << " after " << after;
                now.erase(path);
            }
            return now.size();
        };
        EXPECT_FALSE(checkpoint::exists(ckpt));
        EXPECT_THROW(Checkpoint::open(ckpt), IoError);
        EXPECT_THROW(Checkpoint::open(file), IoError);
        EXPECT_EQ(expect_untouched("reading"), 0U);
        for (const Replace how : {Replace::kSwapIfPossible, Replace::kMoveAside}) {
            for (int step = 1; step <= 2; ++step) StepCheckpoint(step, 10).write_to(ckpt, how);
            write_file(file, "{}");
            expect_untouched("saving");
            EXPECT_EQ(step_in(ckpt), 2);
            write_raw(ckpt / "mine", "");
            EXPECT_THROW(StepCheckpoint(3).write_to(ckpt, how), IoError);
            EXPECT_THROW(checkpoint::remove(ckpt), IoError);
            EXPECT_THROW(write_file(ckpt, "x"), IoError);
            expect_untouched("failing");
            fs::remove(ckpt / "mine");
            checkpoint::remove(ckpt);
            fs::remove(file);
            EXPECT_EQ(expect_untouched("removing"), 0U);
        }
    }
}

// A program may look for its checkpoint for hours, and read it with the rights of a
// guest: looking changes nothing.
TEST(Leftovers, ReadingChangesNothing) {
    for (const State& state : states_of_killed_saves()) {
        const TestFolder folder(fast_place());
        state.make(folder, "ckpt");
        const auto before = snapshot(folder.path());
        EXPECT_FALSE(checkpoint::exists(folder / "ckpt"));
        EXPECT_THROW(Checkpoint::open(folder / "ckpt"), IoError);
        EXPECT_EQ(snapshot(folder.path()), before) << state.name;
    }
}

// Two runs may save beside each other: neither may delete what the other is making.
TEST(Leftovers, OfTheLivingStay) {
    const TestFolder folder(fast_place());
    const fs::path path = make_workspace(folder, "ckpt", {"weights.safetensors"});
    fs::create_directory(path / "new");
    write_raw(path / "new/weights.safetensors", "half");
    const FileDescriptor living(::open((path / "journal").c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(::flock(living.get(), LOCK_EX), 0);
    StepCheckpoint(1).write_to(folder / "ckpt");
    EXPECT_EQ(names_in(folder.path()), (Names{"ckpt", path.filename().string()}));
    EXPECT_EQ(read_raw(path / "new/weights.safetensors"), "half");
}

// Root may read a journal whatever its permissions are; those who train may not.
TEST(Leftovers, OfAnOrdinaryUserGoWithTheNextSave) {
    const TestFolder folder(fast_place());
    ASSERT_EQ(::chmod(folder.path().c_str(), 0777), 0);
    const std::string report = in_child([&]() -> std::string {
        constexpr uid_t kNobody = 65534;
        if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) return "cannot drop root";
        ::umask(0022);
        SaveFolder::create(folder / "ckpt").keep();  // as if it were killed here
        struct stat journal{};
        const fs::path path = folder / *names_in(folder.path()).begin() / "journal";
        if (::stat(path.c_str(), &journal) != 0 || (journal.st_mode & 07777) != 0644) {
            return "a journal with the mode " + std::to_string(journal.st_mode & 07777);
        }
        StepCheckpoint(1).write_to(folder / "ckpt");
        return names_in(folder.path()) == Names{"ckpt"} ? "" : "the workspace stays";
    });
    EXPECT_EQ(report, "");
}

// In a folder that everybody may write to, even root leaves alone what another user's save left.
TEST(Leftovers, OfOtherUsersStay) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can give files away";
    const TestFolder folder(fast_place());
    const fs::path path = make_workspace(folder, "ckpt", {});
    for (const bool only_journal : {true, false}) {
        ASSERT_EQ(::chown((only_journal ? path / "journal" : path).c_str(), 65534, 65534), 0);
        StepCheckpoint(1).write_to(folder / "ckpt");
        EXPECT_EQ(names_in(folder.path()), (Names{"ckpt", path.filename().string()}));
    }
}

// Whoever may not list a folder may still save into it.
TEST(Leftovers, AFolderThatCannotBeListedIsWrittenTo) {
    const TestFolder folder(fast_place());
    fs::create_directory(folder / "box");
    ASSERT_EQ(::chmod(folder.path().c_str(), 0777), 0);
    ASSERT_EQ(::chmod((folder / "box").c_str(), 0333), 0);
    const std::string report = in_child([&]() -> std::string {
        constexpr uid_t kNobody = 65534;
        if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) return "cannot drop root";
        write_file(folder / "box/x.json", "{}");
        for (int step = 1; step <= 2; ++step) StepCheckpoint(step).write_to(folder / "box/ckpt");
        return step_in(folder / "box/ckpt") == 2 ? "" : "another step";
    });
    EXPECT_EQ(report, "");
    ASSERT_EQ(::chmod((folder / "box").c_str(), 0777), 0);
    EXPECT_EQ(names_in(folder / "box"), (Names{"ckpt", "x.json"}));
}

}  // namespace
}  // namespace flashoptim::checkpoint
