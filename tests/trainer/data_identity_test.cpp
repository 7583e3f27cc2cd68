// What counts as the same data when a run goes on. What a user loses if this fails: a model that
// was trained on two data sets.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "data_fixture.h"
#include "flashoptim/error.h"
#include "temporary_folder.h"
#include "trainer/data/identity.h"
#include "trainer/data/token_source.h"

namespace flashoptim::trainer {
namespace {

namespace fs = std::filesystem;

TEST(Identity, TextRoundTripAndFaults) {
    for (const FileIdentity& file : {FileIdentity{0, 0}, FileIdentity{12, 0xFEDCBA9876543210U},
                                     FileIdentity{std::int64_t{1} << 62, 1}}) {
        EXPECT_TRUE(file_identity(to_text(file)) == file) << to_text(file);
    }
    EXPECT_EQ(to_text({12, 0xAB}), "12 00000000000000ab");
    for (const char* fault : {"", "12", "12 ", "12 ab", "-1 00000000000000ab", "12  0000000000000ab",
                              "12 00000000000000ag", "12 00000000000000abc", "x 00000000000000ab"}) {
        EXPECT_FALSE(file_identity(fault).has_value()) << fault;
    }
}

class DataChange : public testing::Test {
protected:
    DataChange() {
        for (const char* set : {"train", "held"}) {
            for (const char* name : {"a.txt", "b.txt", "c.txt"}) {
                folder_.write(fs::path(set) / name, std::string(300, set[0]) + name);
            }
        }
        options_.path = folder_.path() / "train";
        before_ = identity();
    }
    DataIdentity identity() const { return open_data(options_, 65536, 16).identity(); }
    // What is different now; "" for nothing.
    std::string change() const { return difference(before_, identity()).value_or(""); }
    std::string file(const char* name) const { return (options_.path / name).string(); }

    TemporaryFolder folder_;
    DataOptions options_;
    DataIdentity before_;
};

TEST_F(DataChange, MovingAndRenamingIsNone) {
    EXPECT_EQ(change(), "");
    fs::rename(folder_.path() / "train", folder_.path() / "moved");
    options_.path = folder_.path() / "moved";
    EXPECT_EQ(change(), "");
    fs::rename(options_.path / "b.txt", options_.path / "b renamed.text");
    EXPECT_EQ(change(), "");
    fs::create_directories(options_.path / "b");
    fs::rename(options_.path / "b renamed.text", options_.path / "b" / "x");
    EXPECT_EQ(change(), "");
    folder_.write("moved/0 empty", "");
    folder_.write("moved/.hidden", "text");
    EXPECT_EQ(change(), "");
    fs::create_directory_symlink(options_.path, folder_.path() / "link");
    options_.path = folder_.path() / "link";
    EXPECT_EQ(change(), "");
}

TEST_F(DataChange, EveryByteCounts) {
    const std::string content = read_all(file("b.txt"));
    for (std::size_t at = 0; at < content.size(); ++at) {
        std::string other = content;
        other[at] = other[at] == 'z' ? 'y' : 'z';
        folder_.write("train/b.txt", other);
        ASSERT_TRUE(contains(change(), file("b.txt") + " is not what the training data had (its content"))
            << change();
    }
}

TEST_F(DataChange, SizeNumberAndOrderAreNamed) {
    const std::string content = read_all(file("b.txt"));
    folder_.write("train/b.txt", content + "x");
    EXPECT_EQ(change(), file("b.txt") + " is not what the training data had (306 bytes instead of 305)");
    folder_.write("train/b.txt", content.substr(1));
    EXPECT_EQ(change(), file("b.txt") + " is not what the training data had (304 bytes instead of 305)");
    folder_.write("train/b.txt", content);
    folder_.write("train/aa.txt", "more");
    EXPECT_EQ(change(), file("aa.txt") + " is not what the training data had (4 files instead of 3)");
    folder_.write("train/aa.txt", read_all(file("a.txt")));  // a copy of what is there
    EXPECT_EQ(change(), file("aa.txt") + " is not what the training data had (4 files instead of 3)");
    fs::remove(file("aa.txt"));
    EXPECT_EQ(change(), "");
    fs::rename(file("c.txt"), file("0.txt"));
    EXPECT_EQ(change(), "the files of the training data are in another order, from " + file("0.txt") + " on");
    fs::rename(file("0.txt"), file("c.txt"));
    fs::remove(file("b.txt"));
    EXPECT_EQ(change(), "the training data had 3 files and has 2");
}

TEST_F(DataChange, ValidationDataCountsToo) {
    options_.validation_path = folder_.path() / "held";
    EXPECT_TRUE(contains(change(), "validation data was a part of the training data"));
    const DataIdentity split = before_;
    before_ = identity();
    EXPECT_EQ(change(), "");
    folder_.write("held/c.txt", std::string(305, 'x'));
    EXPECT_EQ(change(), (folder_.path() / "held/c.txt").string() +
                            " is not what the validation data had (its content was changed)");
    EXPECT_TRUE(contains(difference(before_, split).value_or(""), "validation data had files of its own"));
}

// The same bytes, read otherwise.
TEST_F(DataChange, SplitAndWidthCount) {
    options_.validation_fraction = 0.2;
    EXPECT_EQ(change(), "the training data had 823 tokens and has 732 (another validation fraction)");
    options_.validation_fraction = 0.1;
    options_.path = folder_.write("tokens.bin", raw(counting<std::uint16_t>(2000)));
    options_.raw = kNarrow;
    before_ = identity();
    options_.raw = kWide;
    options_.path = folder_.write("tokens.bin", raw(counting<std::uint16_t>(2000)));
    EXPECT_THROW(identity(), FormatError);  // the vocabulary says so already
    fs::copy_file(folder_.path() / "tokens.bin", folder_.path() / "other.bin");
    options_.path = folder_.path() / "other.bin";
    options_.raw = kNarrow;
    EXPECT_EQ(change(), "");
}

// Of a data set beyond 1 GiB samples are compared: a change of its size, its beginning, its end or of much of
// it is seen. The file has holes and takes no room.
TEST_F(DataChange, LargeDataIsSampled) {
    const fs::path large = folder_.write("large.bin", raw(counting<std::uint16_t>(100'000)));
    const std::uintmax_t size = (std::uintmax_t{3} << 30) + 4096;
    fs::resize_file(large, size);
    const auto write_at = [&](std::uintmax_t offset, const std::string& bytes) {
        std::fstream file(large, std::ios::binary | std::ios::in | std::ios::out);
        file.seekp(static_cast<std::streamoff>(offset));
        file << bytes;
    };
    options_.path = large;
    before_ = identity();
    EXPECT_EQ(change(), "");
    for (const std::uintmax_t offset : {std::uintmax_t{0}, std::uintmax_t{60'000}, size - 2, size - 60'000}) {
        write_at(offset, "\x01");
        EXPECT_TRUE(contains(change(), "its content was changed")) << offset;
        before_ = identity();
    }
    write_at(size / 2, std::string(std::size_t{8} << 20, '\x02'));  // longer than the distance of two samples
    EXPECT_TRUE(contains(change(), "its content was changed"));
    fs::resize_file(large, size + 2);
    EXPECT_TRUE(contains(change(), "bytes instead of"));
}

}  // namespace
}  // namespace flashoptim::trainer
