// What is written is read back bit for bit, other programs read our files, and every
// valid file of theirs is read.
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "support.h"

namespace flashoptim::checkpoint {
namespace {

template <typename T>
TensorData tensor_of(std::string name, StorageType dtype, std::vector<std::int64_t> shape, const T& values) {
    return {.name = std::move(name),
            .dtype = dtype,
            .shape = std::move(shape),
            .bytes = std::as_bytes(std::span(values))};
}

// Users lose weights if a value of any type or shape comes back changed.
TEST(Safetensors, EveryTypeComesBackBitForBit) {
    const TestFolder folder;
    std::array<std::uint8_t, 48> bytes{};
    std::iota(bytes.begin(), bytes.end(), std::uint8_t{200});
    std::vector<TensorData> tensors;
    for (int type = 0; type <= static_cast<int>(StorageType::kUInt64); ++type) {
        const auto dtype = static_cast<StorageType>(type);
        const auto count = static_cast<std::int64_t>(bytes.size() / element_size(dtype));
        tensors.push_back(tensor_of(std::string(storage_type_name(dtype)), dtype, {count / 2, 2}, bytes));
    }
    const std::uint64_t byte_count = write_safetensors(folder / "all.safetensors", tensors);
    EXPECT_EQ(byte_count, std::filesystem::file_size(folder / "all.safetensors"));

    const auto file = SafetensorsFile::open(folder / "all.safetensors");
    EXPECT_EQ(file.byte_count(), byte_count);
    ASSERT_EQ(file.tensors().size(), tensors.size());
    for (const TensorData& tensor : tensors) {
        const TensorInfo& info = file.tensor(tensor.name, tensor.dtype, tensor.shape);
        EXPECT_EQ(info.offset % element_size(tensor.dtype), 0U) << tensor.name << " is not aligned";
        EXPECT_EQ(read_as<std::uint8_t>(file, tensor.name), std::vector(bytes.begin(), bytes.end()));
        EXPECT_EQ(file.read(info).size(), bytes.size());
    }
}

TEST(Safetensors, ScalarsEmptyTensorsNamesAndMetadataComeBack) {
    const TestFolder folder;
    const std::array<float, 1> pi{3.25F};
    const std::array<std::int64_t, 2> pair{std::numeric_limits<std::int64_t>::min(), -1};
    const std::span<const float> nothing;
    const std::string odd_name = "a \"quoted\"\nname\t\xC3\xA9 \xF0\x9F\x94\xA5";
    const std::vector<TensorData> tensors{
        tensor_of("", StorageType::kFloat32, {}, pi),
        tensor_of(odd_name, StorageType::kInt64, {1, 2, 1}, pair),
        tensor_of("empty", StorageType::kFloat32, {3, 0, 5}, nothing),
        tensor_of("also.empty", StorageType::kBool, {0}, nothing),
    };
    const Metadata metadata{{"format", "native"}, {"text", "line 1\nline 2 \xC3\xA9"}, {"", ""}};
    write_safetensors(folder / "x.safetensors", tensors, metadata);

    const auto file = SafetensorsFile::open(folder / "x.safetensors");
    EXPECT_EQ(file.metadata(), metadata);
    EXPECT_EQ(read_as<float>(file, ""), std::vector(pi.begin(), pi.end()));
    EXPECT_EQ(read_as<std::int64_t>(file, odd_name), std::vector(pair.begin(), pair.end()));
    EXPECT_EQ(file.tensor("empty").shape, (std::vector<std::int64_t>{3, 0, 5}));
    EXPECT_TRUE(file.read(file.tensor("also.empty")).empty());
    EXPECT_EQ(file.find("absent"), nullptr);
}

TEST(Safetensors, AFileWithoutTensorsIsAFile) {
    const TestFolder folder;
    write_safetensors(folder / "none.safetensors", {});
    EXPECT_TRUE(SafetensorsFile::open(folder / "none.safetensors").tensors().empty());
}

// The bytes are those of safetensors.torch.save (version 0.8.0) given the same tensors and metadata
// {"format": "pt"}: whoever hashes or maps such files can treat ours like theirs.
TEST(Safetensors, WritesTheSameBytesAsTheReferenceWriter) {
    static constexpr std::string_view kReference(
        "\x18\x02\0\0\0\0\0\0"
        R"({"__metadata__":{"format":"pt"},"z":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]},)"
        R"("d":{"dtype":"F64","shape":[1],"data_offsets":[16,24]},)"
        R"("a":{"dtype":"F32","shape":[2],"data_offsets":[24,32]},)"
        R"("h":{"dtype":"BF16","shape":[],"data_offsets":[32,34]},)"
        R"("g":{"dtype":"F16","shape":[1],"data_offsets":[34,36]},)"
        "\"\xC3\xA9\\\"\\n\":"
        R"({"dtype":"I16","shape":[1],"data_offsets":[36,38]},)"
        R"("b":{"dtype":"I8","shape":[3],"data_offsets":[38,41]},)"
        R"("u":{"dtype":"U8","shape":[0,4],"data_offsets":[41,41]},)"
        R"("q":{"dtype":"BOOL","shape":[1],"data_offsets":[41,42]}}  )"
        "\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0"
        "\0\0\0\0\0\0\xD0\x3F"
        "\0\0\xC0\x3F\0\0\0\xC0"
        "\0\x3F"
        "\0\x3C"
        "\7\0"
        "\0\1\2"
        "\1",
        8 + 0x218 + 42);
    const std::array<std::int8_t, 3> b{0, 1, 2};
    const std::array<float, 2> a{1.5F, -2.0F};
    const std::array<std::int64_t, 2> z{1, 2};
    const std::array<std::uint16_t, 1> h{0x3F00};  // 0.5
    const std::array<std::uint16_t, 1> g{0x3C00};  // 1.0
    const std::array<std::uint8_t, 1> q{1};
    const std::array<double, 1> d{0.25};
    const std::array<std::int16_t, 1> e{7};
    const std::vector<TensorData> tensors{
        tensor_of("b", StorageType::kInt8, {3}, b),
        tensor_of("a", StorageType::kFloat32, {2}, a),
        tensor_of("z", StorageType::kInt64, {1, 2}, z),
        tensor_of("h", StorageType::kBFloat16, {}, h),
        tensor_of("g", StorageType::kFloat16, {1}, g),
        tensor_of("u", StorageType::kUInt8, {0, 4}, std::span<std::uint8_t>()),
        tensor_of("q", StorageType::kBool, {1}, q),
        tensor_of("d", StorageType::kFloat64, {1}, d),
        tensor_of("\xC3\xA9\"\n", StorageType::kInt16, {1}, e),
    };
    const TestFolder folder;
    write_safetensors(folder / "x.safetensors", tensors, {{"format", "pt"}});
    EXPECT_EQ(read_raw(folder / "x.safetensors"), kReference);
}

// Files that other writers make within the format's rules, though ours never would.
TEST(Safetensors, ReadsWhatOtherWritersMayWrite) {
    struct Case {
        std::string_view name;
        std::string_view header;
        std::size_t data_bytes;
    };
    const std::array cases{
        Case{"no tensors", "{}", 0},
        Case{"white space around", "\t\n {} \r\n\t", 0},
        Case{"metadata only", R"({"__metadata__":{}})", 0},
        Case{"metadata last",
             R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{"k":"v"}})", 1},
        Case{"header of odd length", R"({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]} })", 8},
        Case{"other order of fields", R"({"a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}})", 8},
        Case{"unknown field", R"({"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1],"note":{"x":[1]}}})", 1},
        Case{"order of names differs from order of data",
             R"({"a":{"dtype":"I8","shape":[2],"data_offsets":[1,3]},"b":{"dtype":"I8",)"
             R"("shape":[1],"data_offsets":[0,1]}})",
             3},
        Case{"empty tensors at the beginning, between and at the end",
             R"({"z":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"F32",)"
             R"("shape":[0],"data_offsets":[2,2]},)"
             R"("b":{"dtype":"I8","shape":[1],"data_offsets":[2,3]},"c":{"dtype":"I8",)"
             R"("shape":[0,9],"data_offsets":[3,3]},)"
             R"("d":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}})",
             3},
        Case{"escaped name", R"({"\u00e9\ud83d\udd25":{"dtype":"I8","shape":[],"data_offsets":[0,1]}})", 1},
    };
    const TestFolder folder;
    for (const Case& valid : cases) {
        SCOPED_TRACE(valid.name);
        write_raw(folder / "x.safetensors", raw_safetensors(valid.header, valid.data_bytes));
        std::uint64_t data_bytes = 0;
        try {
            const auto file = SafetensorsFile::open(folder / "x.safetensors");
            for (const TensorInfo& tensor : file.tensors()) data_bytes += file.read(tensor).size();
        } catch (const Error& error) {
            ADD_FAILURE() << error.what();
        }
        EXPECT_EQ(data_bytes, valid.data_bytes);
    }
}

// FLASHOPTIM_SAFETENSORS_SAMPLES names a folder of valid files of other projects.
TEST(Safetensors, ReadsTheValidFilesOfOtherProjects) {
    const char* samples = std::getenv("FLASHOPTIM_SAFETENSORS_SAMPLES");
    if (samples == nullptr) GTEST_SKIP() << "FLASHOPTIM_SAFETENSORS_SAMPLES is not set";
    const std::filesystem::path folder = samples;
    std::size_t file_count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().extension() != ".safetensors") continue;
        ++file_count;
        SCOPED_TRACE(entry.path().filename());
        EXPECT_NO_THROW({
            const auto file = SafetensorsFile::open(entry.path());
            for (const TensorInfo& tensor : file.tensors()) file.read(tensor);
        });
    }
    EXPECT_GE(file_count, 1U);
}

TEST(Safetensors, TheWriterRefusesWhatWouldMakeABadFile) {
    const TestFolder folder;
    const std::array<float, 2> two{};
    struct Case {
        std::vector<TensorData> tensors;
        Metadata metadata;
        std::string fragment;
    };
    const auto f32 = StorageType::kFloat32;
    const std::int64_t huge = std::int64_t{1} << 62;
    const std::array cases{
        Case{{tensor_of("a", f32, {3}, two)}, {}, "tensor \"a\" is given with 8 bytes and F32 [3] needs 12"},
        Case{{tensor_of("a", f32, {-2}, two)}, {}, "F32 [-2] is no possible size"},
        Case{{tensor_of("a", f32, {huge, huge}, two)}, {}, "is no possible size"},
        Case{{tensor_of("a", f32, {2}, two), tensor_of("a", f32, {2}, two)},
             {},
             "tensor \"a\" is given twice"},
        Case{{tensor_of("__metadata__", f32, {2}, two)}, {}, "reserves"},
        Case{{tensor_of("a\xFF", f32, {2}, two)}, {}, "tensor \"a?\" is not valid UTF-8"},
        Case{{tensor_of("a", static_cast<StorageType>(99), {2}, two)}, {}, "storage type 99 does not exist"},
        Case{{}, {{"key", "\xC3"}}, "the metadata is not valid UTF-8"},
    };
    for (const Case& bad : cases) {
        expect_contains(message_of<InvalidArgument>(
                            [&] { write_safetensors(folder / "x.safetensors", bad.tensors, bad.metadata); }),
                        bad.fragment);
    }
    EXPECT_TRUE(names_in(folder.path()).empty());
}

TEST(Safetensors, AskingForWhatIsNotThereSaysWhatIs) {
    const TestFolder folder;
    const std::array<float, 6> values{};
    write_safetensors(folder / "x.safetensors",
                      std::vector{tensor_of("w", StorageType::kFloat32, {2, 3}, values)});
    const auto file = SafetensorsFile::open(folder / "x.safetensors");

    expect_contains(message_of<FormatError>([&] { file.tensor("v"); }), "x.safetensors' has no tensor \"v\"");
    const std::array<std::int64_t, 2> shape{3, 2};
    expect_contains(message_of<FormatError>([&] { file.tensor("w", StorageType::kBFloat16, shape); }),
                    "tensor \"w\" is F32 [2, 3] and must be BF16 [3, 2]");
    std::array<std::byte, 8> short_memory{};
    expect_contains(message_of<InvalidArgument>([&] { file.read(file.tensor("w"), short_memory); }),
                    "has 24 bytes");
    expect_contains(message_of<IoError>([&] { SafetensorsFile::open(folder / "absent"); }), "No such file");
    expect_contains(message_of<IoError>([&] { SafetensorsFile::open(folder.path()); }), "not a regular file");
}

// A file that is shortened under an open reader must be an error; a mapped one would end the process.
TEST(Safetensors, AFileShortenedWhileOpenIsAnError) {
    const TestFolder folder;
    const std::vector<float> values(1000);
    write_safetensors(folder / "x.safetensors",
                      std::vector{tensor_of("w", StorageType::kFloat32, {1000}, values)});
    const auto file = SafetensorsFile::open(folder / "x.safetensors");
    std::filesystem::resize_file(folder / "x.safetensors", 500);
    expect_contains(message_of<IoError>([&] { file.read(file.tensor("w")); }), "it ends at byte 500");
}

}  // namespace
}  // namespace flashoptim::checkpoint
