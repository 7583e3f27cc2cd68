// Files and folders that cannot be read as data, and files that others change while a run reads
// them. What a user loses if these fail: a run that hangs or is killed by a signal, or one that
// trains on other data without a word.
#include "trainer/data/data_file.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "data_fixture.h"
#include "flashoptim/error.h"
#include "temporary_folder.h"
#include "trainer/data/file_list.h"
#include "trainer/data/token_source.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;

std::string refusal(const fs::path& path) {
    return message_of<Error>([&] { open_tokens(path, 65536, {}); });
}

void expect_named(const fs::path& path, const std::string& why) {
    const std::string message = refusal(path);
    EXPECT_TRUE(contains(message, path.string())) << message;
    EXPECT_TRUE(contains(message, why)) << message;
    EXPECT_TRUE(contains(message, ";")) << "no remedy: " << message;
}

void make_socket(const fs::path& path) {
    const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    ASSERT_LT(path.string().size(), sizeof address.sun_path);
    std::memcpy(address.sun_path, path.c_str(), path.string().size());
    EXPECT_EQ(::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    ::close(socket);
}

// To open a pipe without a writer never returns, and a device never ends.
TEST(DataFile, WhatIsNoFileIsNamed) {
    const TemporaryFolder folder;
    for (const char* ending : {"", ".txt", ".bin"}) {
        const fs::path pipe = folder.path() / ("pipe"s + ending);
        ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
        expect_named(pipe, "a pipe");
        const fs::path link = folder.path() / ("link"s + ending);
        fs::create_symlink(pipe, link);
        expect_named(link, "a pipe");
    }
    const fs::path socket = fs::temp_directory_path() / ("s"s + std::to_string(::getpid()));
    make_socket(socket);
    expect_named(socket, "a socket");
    fs::remove(socket);
    for (const char* device : {"/dev/null", "/dev/zero", "/dev/tty"}) expect_named(device, "a device");
    EXPECT_TRUE(contains(refusal(""), "path of the data is empty"));
    expect_named(folder.path() / "nowhere", "does not exist");
    expect_named(folder.write("file", "x") / "below", "does not exist");
    expect_named(folder.path() / std::string(300, 'n'), "File name too long");
    const fs::path circle = folder.path() / "circle";
    fs::create_symlink(circle, circle);
    expect_named(circle, "symbolic links");
}

// Whatever lies in a data folder and is no data is named; to leave it out silently would train on a part.
TEST(DataFile, WhatIsNoFileInAFolderIsNamed) {
    const TemporaryFolder folder;
    const auto inside = [&](const std::string& name) {
        folder.write(name + "/a.txt", "good text");
        fs::create_directories(folder.path() / name / "below");
        return folder.path() / name / "below" / "thing";
    };
    const auto expect_inside = [&](const fs::path& thing, const std::string& why) {
        const std::string message = refusal(thing.parent_path().parent_path());
        EXPECT_TRUE(contains(message, thing.string())) << message;
        EXPECT_TRUE(contains(message, why)) << message;
    };
    const fs::path pipe = inside("pipe");
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    expect_inside(pipe, "neither a file nor a folder");
    const fs::path dangling = inside("dangling");
    fs::create_symlink("nowhere", dangling);
    expect_inside(dangling, "leads nowhere");
    const fs::path circle = inside("circle");
    fs::create_symlink(circle, circle);
    expect_inside(circle, "symbolic links");
    const fs::path above = inside("above");
    fs::create_symlink("..", above);
    expect_inside(above, "a folder that it lies in");
    const fs::path device = inside("device");
    fs::create_symlink("/dev/zero", device);
    expect_inside(device, "neither a file nor a folder");
    // Hidden things are nobody's data.
    const fs::path hidden = inside("hidden");
    ASSERT_EQ(::mkfifo((hidden.parent_path() / ".pipe").c_str(), 0600), 0);
    EXPECT_EQ(refusal(folder.path() / "hidden"), "");
}

// Data sets are put together from links to files and folders.
TEST(DataFile, LinksAreFollowed) {
    const TemporaryFolder folder;
    folder.write("store/one.txt", "first ");
    folder.write("store/shards/two.txt", "second ");
    fs::create_directories(folder.path() / "set");
    fs::create_symlink(folder.path() / "store" / "one.txt", folder.path() / "set" / "a.txt");
    fs::create_symlink(folder.path() / "store" / "shards", folder.path() / "set" / "b");
    fs::create_symlink(folder.path() / "store" / "shards", folder.path() / "set" / "c");
    EXPECT_EQ(open_tokens(folder.path() / "set", 256, {})->size(), 6 + 7 + 7);
}

// As another user than root, who may read everything.
class AsNobody {
public:
    AsNobody() : switched_(::geteuid() == 0 && ::seteuid(65534) == 0) {}
    ~AsNobody() {
        if (switched_) {
            EXPECT_EQ(::seteuid(0), 0);
        }
    }
    AsNobody(const AsNobody&) = delete;
    AsNobody& operator=(const AsNobody&) = delete;

private:
    bool switched_;
};

// The file or subfolder that may not be read is named, not the folder that was given.
TEST(DataFile, WhatMayNotBeReadIsNamed) {
    const TemporaryFolder folder;
    folder.write("set/a.txt", "good text");
    const fs::path closed = folder.write("set/below/closed/b.txt", "more").parent_path();
    const fs::path file = folder.write("other/c.txt", "text");
    fs::permissions(closed, fs::perms::none);
    fs::permissions(file, fs::perms::none);
    {
        const AsNobody nobody;
        const std::string subfolder = refusal(folder.path() / "set");
        EXPECT_TRUE(contains(subfolder, closed.string() + "'")) << subfolder;
        EXPECT_TRUE(contains(subfolder, "Permission denied")) << subfolder;
        EXPECT_TRUE(contains(subfolder, "permissions")) << subfolder;
        for (const fs::path& path : {file, file.parent_path()}) {
            const std::string message = refusal(path);
            EXPECT_TRUE(contains(message, file.string() + "'")) << message;
            EXPECT_TRUE(contains(message, "Permission denied")) << message;
        }
        EXPECT_TRUE(contains(refusal(closed / "b.txt"), "Permission denied"));
    }
    fs::permissions(closed, fs::perms::owner_all);
}

TEST(DataFile, ReadsWhatItHolds) {
    const TemporaryFolder folder;
    const std::string content = raw(counting<std::uint32_t>(600'000));  // more than two pieces
    for (const bool keep_open : {true, false}) {
        DataFile file(folder.write("file", content), keep_open);
        std::string seen;
        file.scan(0, [&](std::int64_t offset, std::span<const std::byte> bytes) {
            EXPECT_EQ(offset, static_cast<std::int64_t>(seen.size()));
            seen.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        });
        EXPECT_TRUE(seen == content);
        std::array<std::byte, 1000> some{};
        file.read(12345, some);
        EXPECT_EQ(std::memcmp(some.data(), content.data() + 12345, some.size()), 0);
    }
}

// Samples lie within the file, in order, at both of its ends, and where they overlap in nothing.
TEST(DataFile, SamplesAreSpreadOverTheWholeFile) {
    for (const std::int64_t size :
         {std::int64_t{0}, std::int64_t{1}, kSampleBytes, 2 * kSampleBytes - 1, 2 * kSampleBytes,
          1000 * kSampleBytes + 17, std::int64_t{1} << 37, (std::int64_t{1} << 45) + 12345}) {
        for (const std::int64_t blocks :
             {std::int64_t{2}, std::int64_t{3}, std::int64_t{64}, std::int64_t{1024}}) {
            const std::vector<ByteRange> ranges = sampled_ranges(size, blocks);
            std::int64_t end = 0;
            std::int64_t widest = 0;
            for (const ByteRange& range : ranges) {
                EXPECT_GE(range.begin, end);
                EXPECT_EQ(range.begin % 4096, 0);
                widest = std::max(widest, range.begin - end);
                end = range.begin + range.size;
            }
            EXPECT_EQ(ranges.front().begin, 0);
            EXPECT_EQ(end, size);
            if (ranges.size() > 1) {
                EXPECT_EQ(static_cast<std::int64_t>(ranges.size()), blocks);
                EXPECT_LE(widest, size / (blocks - 1) + 4096);
            } else {
                EXPECT_LT(size, blocks * kSampleBytes);
            }
        }
    }
    EXPECT_EQ(blocks_to_scan(std::int64_t{1} << 30, std::int64_t{1} << 30), 0);
    EXPECT_EQ(blocks_to_scan(std::int64_t{100} << 30, std::int64_t{100} << 30), 1024);
    EXPECT_EQ(blocks_to_scan(std::int64_t{1} << 20, std::int64_t{100} << 30), 2);
}

// What another process may do to a file that is read. A mapped file would be SIGBUS,
// or other data without a word.
class ChangedFile : public testing::TestWithParam<bool> {
protected:
    ChangedFile() : path_(folder_.write("data.bin", raw(counting<std::uint16_t>(kTokens)))) {
        file_ = std::make_unique<DataFile>(path_, GetParam());
        file_->scan(0, {});
    }
    // Message of reading the last 100 bytes; empty if they are the old ones.
    std::string read() {
        std::array<std::byte, 100> bytes{};
        const std::string message = message_of<IoError>([&] { file_->read(2 * kTokens - 100, bytes); });
        if (message.empty()) {
            const std::string old = raw(counting<std::uint16_t>(kTokens));
            EXPECT_EQ(std::memcmp(bytes.data(), old.data() + 2 * kTokens - 100, bytes.size()), 0);
        }
        return message;
    }
    void rewrite(const std::string& content) const { std::ofstream(path_, std::ios::binary) << content; }

    static constexpr std::int64_t kTokens = 50'000;
    TemporaryFolder folder_;
    fs::path path_;
    std::unique_ptr<DataFile> file_;
};
INSTANTIATE_TEST_SUITE_P(KeptOpenOrNot, ChangedFile, testing::Bool(),
                         [](const auto& instance) { return instance.param ? "KeptOpen" : "OpenedEachTime"; });

TEST_P(ChangedFile, TruncationIsNamed) {
    for (const std::int64_t size :
         {2 * kTokens - 1, 2 * kTokens - 100, std::int64_t{4096}, std::int64_t{0}}) {
        fs::resize_file(path_, static_cast<std::uintmax_t>(size));
        const std::string message = read();
        EXPECT_TRUE(contains(message, path_.string())) << message;
        EXPECT_TRUE(contains(message, "cut short")) << message;
    }
}

TEST_P(ChangedFile, OtherContentInPlaceIsNamed) {
    std::string other = raw(counting<std::uint16_t>(kTokens));
    other[10] = static_cast<char>(other[10] + 1);  // far from what is read
    rewrite(other);
    const std::string message = read();
    EXPECT_TRUE(contains(message, path_.string() + " was changed while it was read")) << message;
    // Undone: the run may go on.
    rewrite(raw(counting<std::uint16_t>(kTokens)));
    EXPECT_EQ(read(), "");
}

TEST_P(ChangedFile, TheSameContentIsReadOn) {
    EXPECT_EQ(read(), "");
    fs::last_write_time(path_, fs::file_time_type::clock::now());
    EXPECT_EQ(read(), "");
    fs::permissions(path_, fs::perms::owner_read);
    EXPECT_EQ(read(), "");
    fs::permissions(path_, fs::perms::owner_all);
    rewrite(raw(counting<std::uint16_t>(kTokens)));
    EXPECT_EQ(read(), "");
    std::ofstream(path_, std::ios::app) << "appended to";
    EXPECT_EQ(read(), "");
    fs::copy_file(path_, folder_.path() / "copy");
    fs::rename(folder_.path() / "copy", path_);
    EXPECT_EQ(read(), "");
}

// A file that is kept open stays what it was under any name; one that is opened again
// is looked for under its own.
TEST_P(ChangedFile, ReplacedAndRemovedFiles) {
    folder_.write("new", raw(counting<std::uint16_t>(kTokens - 1)) + "xx");
    fs::rename(folder_.path() / "new", path_);
    const std::string replaced = read();
    EXPECT_EQ(replaced,
              GetParam() ? "" : path_.string() + " was changed while it was read; restore it and resume");
    fs::remove(path_);
    const std::string removed = read();
    EXPECT_EQ(removed.empty(), GetParam()) << removed;
    EXPECT_EQ(contains(removed, "No such file"), !GetParam()) << removed;
    ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
    EXPECT_EQ(read().empty(), GetParam());
}

// More files than a process may have open, and than it may have mappings.
TEST(DataFile, ManyFilesNeedNoDescriptors) {
    const TemporaryFolder folder;
    constexpr int kFiles = 1500;
    for (int file = 0; file < kFiles; ++file) folder.write("set/"s + std::to_string(10'000 + file), "text ");
    const auto source = open_byte_text(folder.path() / "set");
    EXPECT_EQ(source->size(), 5 * kFiles);
    EXPECT_EQ(all_tokens(*source).back(), ' ');
    int open = 0;
    for (const auto& entry : fs::directory_iterator("/proc/self/fd")) open += entry.exists() ? 1 : 0;
    EXPECT_LT(open, 200);
}

}  // namespace
}  // namespace flashoptim::trainer
