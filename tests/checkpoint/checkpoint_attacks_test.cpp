// Damaged, incomplete and foreign checkpoint folders: each is refused with one line that
// names the file and the fault.
#include <gtest/gtest.h>

#include "support.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

class CheckpointAttacks : public ::testing::Test {
protected:
    CheckpointAttacks() { StepCheckpoint(5, 20).write_to(ckpt_); }

    /// What opening the folder and everything in it throws.
    template <typename Expected>
    std::string refusal() const {
        return message_of<Expected>([this] { step_in(ckpt_); });
    }

    TestFolder folder_;
    fs::path ckpt_ = folder_ / "ckpt";
};

TEST_F(CheckpointAttacks, NothingThere) {
    expect_contains(message_of<IoError>([&] { Checkpoint::open(folder_ / "absent"); }),
                    "absent': there is nothing; check the path");
    write_raw(folder_ / "file", "");
    expect_contains(message_of<IoError>([&] { Checkpoint::open(folder_ / "file"); }), "Not a directory");
}

TEST_F(CheckpointAttacks, ForeignFolder) {
    fs::create_directory(folder_ / "other");
    expect_contains(message_of<FormatError>([&] { Checkpoint::open(folder_ / "other"); }),
                    "is not a complete checkpoint: checkpoint.json is missing");
}

TEST_F(CheckpointAttacks, MissingFile) {
    for (const char* name : {"metadata.json", "optimizer.safetensors", "weights.safetensors"}) {
        StepCheckpoint(5).write_to(ckpt_);
        fs::remove(ckpt_ / name);
        expect_contains(refusal<FormatError>(),
                        std::string("is not a complete checkpoint: ") + name + " is missing");
    }
}

TEST_F(CheckpointAttacks, TruncatedAtEveryByte) {
    for (const char* name : {"metadata.json", "weights.safetensors"}) {
        const std::string content = read_raw(ckpt_ / name);
        for (std::size_t length = 0; length < content.size(); ++length) {
            write_raw(ckpt_ / name, content.substr(0, length));
            const std::string message = refusal<FormatError>();
            expect_contains(message, std::string(name) + "' is truncated: it needs " +
                                         std::to_string(content.size()) + " bytes and has " +
                                         std::to_string(length));
        }
        write_raw(ckpt_ / name, content + "x");
        expect_contains(refusal<FormatError>(), std::string(name) + "' is too long");
        write_raw(ckpt_ / name, content);
    }
    const std::string table = read_raw(ckpt_ / "checkpoint.json");
    for (std::size_t length = 0; length + 1 < table.size(); ++length) {  // the last byte is a line end
        write_raw(ckpt_ / "checkpoint.json", table.substr(0, length));
        expect_contains(refusal<FormatError>(), "checkpoint.json' is not ");
    }
}

// A flipped bit in a weight looks like any other weight: only the checksum can tell.
TEST_F(CheckpointAttacks, EveryByteOfTheContentsIsProtected) {
    for (const char* name : {"metadata.json", "weights.safetensors"}) {
        const std::string content = read_raw(ckpt_ / name);
        for (std::size_t place = 0; place < content.size(); ++place) {
            const auto original = static_cast<unsigned char>(content[place]);
            replace_byte(ckpt_ / name, place, original ^ 1U << (place % 8));
            expect_contains(refusal<FormatError>(), std::string(name) + "' is damaged: its CRC-32 is ");
            replace_byte(ckpt_ / name, place, original);
        }
    }
}

TEST_F(CheckpointAttacks, TheChecksumCanBeTrusted) {
    replace_byte(ckpt_ / "weights.safetensors", fs::file_size(ckpt_ / "weights.safetensors") - 1, 1);
    const auto file = Checkpoint::open(ckpt_).file("weights", Verify::kNothing);
    EXPECT_EQ(read_as<std::int32_t>(file, "layer.weight").back(), (1 << 24) + 5);
}

// Every byte of the table of contents replaced by some others: refused, or the same checkpoint (white space,
// the case of a checksum's digits).
TEST_F(CheckpointAttacks, EveryByteOfTheTableReplaced) {
    const fs::path table = ckpt_ / "checkpoint.json";
    const std::string content = read_raw(table);
    for (std::size_t place = 0; place < content.size(); ++place) {
        const auto original = static_cast<unsigned char>(content[place]);
        for (unsigned change = 1; change < 256; change += 6) {
            replace_byte(table, place, original ^ change);
            try {
                ASSERT_EQ(step_in(ckpt_), 5);
            } catch (const FormatError&) {
            }
        }
        replace_byte(table, place, original);
    }
}

TEST_F(CheckpointAttacks, MalformedTable) {
    struct Attack {
        std::string_view table;
        std::string_view fragment;
    };
    const Attack attacks[] = {
        {"", "is not a JSON object"},
        {"[]", "is not a JSON object"},
        {"{}", "is not the table of contents of a flashoptim-checkpoint"},
        {R"({"format":"other","version":1,"files":{}})", "is not the table of contents"},
        {R"({"format":1,"version":1,"files":{}})", "is not the table of contents"},
        {R"({"format":"flashoptim-checkpoint","files":{}})", "has no valid \"version\""},
        {R"({"format":"flashoptim-checkpoint","version":0,"files":{}})", "has no valid \"version\""},
        {R"({"format":"flashoptim-checkpoint","version":-1,"files":{}})", "has no valid \"version\""},
        {R"({"format":"flashoptim-checkpoint","version":1.0,"files":{}})", "has no valid \"version\""},
        {R"({"format":"flashoptim-checkpoint","version":"1","files":{}})", "has no valid \"version\""},
        {R"({"format":"flashoptim-checkpoint","version":2,"files":{}})",
         "has format version 2 and this build reads up to 1; update flashoptim"},
        {R"({"format":"flashoptim-checkpoint","version":18446744073709551615})",
         "has format version 18446744073709551615"},
        {R"({"format":"flashoptim-checkpoint","version":1})", "lists no files"},
        {R"({"format":"flashoptim-checkpoint","version":1,"files":[]})", "lists no files"},
        {R"({"format":"flashoptim-checkpoint","version":1,"files":{}})", "does not list metadata.json"},
        {R"({"format":"flashoptim-checkpoint","version":1,"version":1,"files":{}})",
         "has the key \"version\" twice"},
        {R"({"format":"flashoptim-checkpoint","version":1,)"
         R"("files":{"/etc/x.safetensors":{"bytes":1,"crc32":"00000000"}}})",
         "invalid entry \"/etc/x.safetensors\""},
        {R"({"format":"flashoptim-checkpoint","version":1,)"
         R"("files":{"../x.safetensors":{"bytes":1,"crc32":"00000000"}}})",
         "invalid entry"},
        {R"({"format":"flashoptim-checkpoint","version":1,)"
         R"("files":{"x\u0000.safetensors":{"bytes":1,"crc32":"00000000"}}})",
         "invalid entry \"x?.safetensors\""},
        {R"({"format":"flashoptim-checkpoint","version":1,"files":{"run.sh":{"bytes":1,)"
         R"("crc32":"00000000"}}})",
         "invalid entry"},
        {R"({"format":"flashoptim-checkpoint","version":1,"files":{"metadata.json":7}})", "invalid entry"},
        {R"({"format":"flashoptim-checkpoint","version":1,"files":{"metadata.json":{"crc32":"00000000"}}})",
         "invalid entry"},
        {R"({"format":"flashoptim-checkpoint","version":1,"files":{"metadata.json":{"bytes":1}}})",
         "invalid entry"},
        {R"({"format":"flashoptim-checkpoint","version":1,)"
         R"("files":{"metadata.json":{"bytes":-1,"crc32":"00000000"}}})",
         "invalid entry"},
        {R"({"format":"flashoptim-checkpoint","version":1,)"
         R"("files":{"metadata.json":{"bytes":1,"crc32":"0000000g"}}})",
         "invalid entry"},
        {R"({"format":"flashoptim-checkpoint","version":1,)"
         R"("files":{"metadata.json":{"bytes":1,"crc32":"0"}}})",
         "invalid entry"},
        {R"({"format":"flashoptim-checkpoint","version":1,"files":{"metadata.json":{"bytes":1,"crc32":0}}})",
         "invalid entry"},
    };
    for (const Attack& attack : attacks) {
        SCOPED_TRACE(attack.table);
        write_raw(ckpt_ / "checkpoint.json", attack.table);
        const std::string message = refusal<FormatError>();
        expect_contains(message, "checkpoint.json'");
        expect_contains(message, std::string(attack.fragment));
    }
}

// A right checksum does not make a safetensors file.
TEST_F(CheckpointAttacks, MalformedTensorFile) {
    std::string table = read_raw(ckpt_ / "checkpoint.json");
    write_raw(ckpt_ / "weights.safetensors", "123456789");
    const std::size_t entry = table.find("weights.safetensors");
    table.replace(entry, std::string::npos, R"(weights.safetensors":{"bytes":9,"crc32":"cbf43926"}}})");
    write_raw(ckpt_ / "checkpoint.json", table);
    expect_contains(refusal<FormatError>(), "weights.safetensors' is not a safetensors file");
}

}  // namespace
}  // namespace flashoptim::checkpoint
