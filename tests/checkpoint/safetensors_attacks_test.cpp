// Malformed files: each is refused with one line that names the file and the fault, and none can crash
// the reader or make it read outside a tensor. Under the address sanitizer this is also the proof that
// nothing is read out of bounds.
#include <gtest/gtest.h>

#include <array>

#include "support.h"

namespace flashoptim::checkpoint {
namespace {

constexpr std::string_view kFileName = "attack.safetensors";

// A tensor "a" of I8 with these JSON texts for its shape and offsets.
std::string one_tensor(std::string_view shape, std::string_view offsets) {
    return R"({"a":{"dtype":"I8","shape":)" + std::string(shape) + R"(,"data_offsets":)" +
           std::string(offsets) + "}}";
}

std::string repeated(std::string_view text, std::size_t count) {
    std::string result;
    for (std::size_t i = 0; i < count; ++i) result += text;
    return result;
}

std::string small_valid_file(const TestFolder& folder) {
    const std::array<float, 3> values{1, 2, 3};
    const std::array<std::int8_t, 2> codes{4, 5};
    const std::vector<TensorData> tensors{{.name = "weight",
                                           .dtype = StorageType::kFloat32,
                                           .shape = {3},
                                           .bytes = std::as_bytes(std::span(values))},
                                          {.name = "codes",
                                           .dtype = StorageType::kInt8,
                                           .shape = {2, 1},
                                           .bytes = std::as_bytes(std::span(codes))}};
    write_safetensors(folder / "valid.safetensors", tensors, {{"format", "native"}});
    return read_raw(folder / "valid.safetensors");
}

struct Attack {
    std::string name;
    std::string content;
    std::string fragment;  // of the message
};

std::vector<Attack> attacks() {
    const auto header = [](std::string name, std::string_view json, std::string fragment,
                           std::size_t data_bytes = 4) {
        return Attack{std::move(name), raw_safetensors(json, data_bytes), std::move(fragment)};
    };
    const std::string not_json = "is not valid JSON";
    const std::string not_object = "is not a JSON object";
    const std::string bad_offsets = "tensor \"a\" has data_offsets that are not a begin and an end";
    const std::string bad_dimension = "tensor \"a\" has a dimension that is not a whole number";
    return {
        {"empty file", "", "is truncated: it needs 8 bytes and has 0"},
        {"header length 0", length_prefix(0), not_object},
        {"header length over the limit", length_prefix(100'000'001) + "{}",
         "announce a header of 100000001 bytes"},
        {"header length 2^63", length_prefix(1ULL << 63) + "{}", "announce a header"},
        {"header length 2^64 - 1", length_prefix(~0ULL) + "{}",
         "announce a header of 18446744073709551615 bytes"},
        {"header longer than the file", length_prefix(50) + "{}",
         "is truncated: it needs 58 bytes and has 10"},
        {"another kind of file", "PK\3\4 this is a zip archive", "announce a header"},

        header("blank header", "        ", not_object),
        header("array", "[]", not_object),
        header("null", "null", not_object),
        header("number", "12345678", not_object),
        header("no end", R"({"a":)", not_json),
        header("text after the object", "{} x", not_json),
        header("NUL after the object", std::string_view("{}\0\0", 4), not_object),
        header("byte order mark", "\xEF\xBB\xBF{}", not_object),
        header("comment", "{/* */}", not_json),
        header("trailing comma", R"({"__metadata__":{},})", not_json),
        header("not UTF-8", "{\"\xFF\":{}}", not_json),
        header("overlong UTF-8", "{\"\xC0\xAF\":{}}", not_json),
        header("UTF-8 surrogate", "{\"\xED\xA0\x80\":{}}", not_json),
        header("lone escaped surrogate", R"({"\ud800":{}})", not_json),
        header("control character in a name", "{\"a\nb\":{}}", not_json),
        header("nested arrays", R"({"a":)" + repeated("[", 100'000), "is nested deeper than 64 levels"),
        header("nested objects", repeated(R"({"a":)", 100'000), "is nested deeper than 64 levels"),
        header("nested metadata", R"({"__metadata__":)" + repeated(R"({"a":)", 1000),
               "is nested deeper than 64 levels"),
        header("long text where JSON ends", R"({"a":")" + repeated("x\xC3\xA9", 10'000), not_json),

        header("tensor twice",
               R"({"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},)"
               R"("a":{"dtype":"I8","shape":[2],"data_offsets":[2,4]}})",
               "has the key \"a\" twice"),
        header("tensor twice, once escaped",
               R"({"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},)"
               R"("\u0061":{"dtype":"I8","shape":[2],"data_offsets":[2,4]}})",
               "has the key \"a\" twice"),
        header("field twice", R"({"a":{"dtype":"I8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
               "has the key \"dtype\" twice"),
        header("metadata twice", R"({"__metadata__":{},"__metadata__":{}})",
               "has the key \"__metadata__\" twice", 0),
        header("metadata key twice", R"({"__metadata__":{"k":"1","k":"2"}})", "has the key \"k\" twice", 0),
        header("metadata is a list", R"({"__metadata__":[]})", "has a __metadata__ that is no object", 0),
        header("metadata value is a number", R"({"__metadata__":{"step":1}})", "__metadata__ value \"step\"",
               0),
        header("metadata value is an object", R"({"__metadata__":{"step":{}}})",
               "__metadata__ value \"step\"", 0),

        header("tensor is a number", R"({"a":4})", "tensor \"a\" is not described by a JSON object"),
        header("tensor is null", R"({"a":null})", "tensor \"a\" is not described by a JSON object"),
        header("name with a line break", R"({"a\nb":4})", "tensor \"a?b\""),
        header("no dtype", R"({"a":{"shape":[4],"data_offsets":[0,4]}})",
               "tensor \"a\" has no valid \"dtype\""),
        header("dtype is a number", R"({"a":{"dtype":8,"shape":[4],"data_offsets":[0,4]}})",
               "has no valid \"dtype\""),
        header("unknown dtype", R"({"a":{"dtype":"F7","shape":[4],"data_offsets":[0,4]}})",
               "tensor \"a\" has the unknown dtype \"F7\"; convert it to one of: BOOL"),
        header("dtype in small letters", R"({"a":{"dtype":"i8","shape":[4],"data_offsets":[0,4]}})",
               "unknown dtype"),
        header("no shape", R"({"a":{"dtype":"I8","data_offsets":[0,4]}})", "has no valid \"shape\""),
        header("shape is a number", one_tensor("4", "[0,4]"), "has no valid \"shape\""),
        header("shape is null", one_tensor("null", "[0,4]"), "has no valid \"shape\""),
        header("negative dimension", one_tensor("[-4]", "[0,4]"), bad_dimension),
        header("negative zero", one_tensor("[-0]", "[0,0]"), bad_dimension, 0),
        header("fractional dimension", one_tensor("[4.0]", "[0,4]"), bad_dimension),
        header("dimension with exponent", one_tensor("[4e0]", "[0,4]"), bad_dimension),
        header("dimension as text", one_tensor("[\"4\"]", "[0,4]"), bad_dimension),
        header("dimension true", one_tensor("[true]", "[0,1]"), bad_dimension),
        header("dimension 2^63", one_tensor("[9223372036854775808]", "[0,4]"), bad_dimension),
        header("dimension 2^64", one_tensor("[18446744073709551616]", "[0,4]"), bad_dimension),
        header("dimension 1e999", one_tensor("[1e999]", "[0,4]"), not_json),
        header("shape beyond 2^64", one_tensor("[4294967296,4294967296]", "[0,0]"),
               "needs more than 2^64 bytes", 0),
        header("shape beyond 2^64, to 4", one_tensor("[4611686018427387905,4]", "[0,4]"),
               "needs more than 2^64 bytes"),

        header("no offsets", R"({"a":{"dtype":"I8","shape":[4]}})", "has no valid \"data_offsets\""),
        header("offsets are an object", one_tensor("[4]", R"({"begin":0})"), "has no valid \"data_offsets\""),
        header("one offset", one_tensor("[4]", "[4]"), bad_offsets),
        header("three offsets", one_tensor("[4]", "[0,4,4]"), bad_offsets),
        header("negative offset", one_tensor("[4]", "[-4,0]"), bad_offsets),
        header("fractional offset", one_tensor("[4]", "[0,4.0]"), bad_offsets),
        header("offset as text", one_tensor("[4]", R"(["0","4"])"), bad_offsets),
        header("offset 2^64", one_tensor("[4]", "[0,18446744073709551616]"), bad_offsets),
        header("end before begin", one_tensor("[4]", "[4,0]"), bad_offsets),
        header("too few bytes for the shape", one_tensor("[4]", "[0,3]"), "is I8 [4], which needs 4 bytes",
               3),
        header("too many bytes for the shape", one_tensor("[3]", "[0,4]"), "is I8 [3], which needs 3 bytes"),
        header("bytes for an empty tensor", one_tensor("[0]", "[0,4]"), "needs 0 bytes"),
        header("no bytes for a scalar", one_tensor("[]", "[0,0]"), "needs 1 bytes", 0),
        header("hole at the beginning", one_tensor("[3]", "[1,4]"), "after a hole that begins at byte 0"),
        header("hole between",
               R"({"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},)"
               R"("b":{"dtype":"I8","shape":[2],"data_offsets":[2,4]}})",
               "tensor \"b\" begins at byte 2"),
        header("hole at the end", one_tensor("[3]", "[0,3]"), "its header describes"),
        header("empty tensor outside", one_tensor("[0]", "[9,9]"), "after a hole"),
        header("overlap",
               R"({"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},)"
               R"("b":{"dtype":"I8","shape":[3],"data_offsets":[1,4]}})",
               "inside another tensor, which ends at byte 3"),
        header("same bytes twice",
               R"({"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},)"
               R"("b":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}})",
               "inside another tensor"),
        header("many dimensions", one_tensor("[" + repeated("1,", 100'000) + "1]", "[0,4]"), "1, ...]"),
        header("end beyond the file", one_tensor("[5]", "[0,5]"), "is truncated"),
        header("end far beyond the file", one_tensor("[9223372036854775807]", "[0,9223372036854775807]"),
               "is truncated"),
        header("end near 2^64",
               R"({"a":{"dtype":"I8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]},)"
               R"("b":{"dtype":"I8","shape":[9223372036854775807],)"
               R"("data_offsets":[9223372036854775807,18446744073709551614]}})",
               "describes more than 2^64 bytes"),
    };
}

TEST(SafetensorsAttacks, EachIsRefusedByName) {
    const TestFolder folder;
    for (const Attack& attack : attacks()) {
        SCOPED_TRACE(attack.name);
        write_raw(folder / kFileName, attack.content);
        const std::string message =
            message_of<FormatError>([&] { SafetensorsFile::open(folder / kFileName); });
        expect_contains(message, (folder / kFileName).string());
        expect_contains(message, attack.fragment);
        expect_contains(message, "; ");
        EXPECT_LT(message.size(), 1000U);
    }
}

// A download or copy that stopped anywhere must not be taken for a model.
TEST(SafetensorsAttacks, TruncatedAtEveryByte) {
    const TestFolder folder;
    const std::string valid = small_valid_file(folder);
    for (std::size_t length = 0; length < valid.size(); ++length) {
        write_raw(folder / kFileName, valid.substr(0, length));
        const std::string message =
            message_of<FormatError>([&] { SafetensorsFile::open(folder / kFileName); });
        expect_contains(message, "is truncated: it needs ");
        expect_contains(message, " bytes and has " + std::to_string(length) + ";");
    }
}

TEST(SafetensorsAttacks, BytesAfterTheEnd) {
    const TestFolder folder;
    const std::string valid = small_valid_file(folder);
    write_raw(folder / kFileName, valid + "x");
    expect_contains(
        message_of<FormatError>([&] { SafetensorsFile::open(folder / kFileName); }),
        std::to_string(valid.size() + 1) + " bytes and its header describes " + std::to_string(valid.size()));
}

// Every byte of the file replaced by every other: the file is refused, or all that it
// then describes can be read.
TEST(SafetensorsAttacks, EveryByteReplacedByEveryOther) {
    const TestFolder folder;
    const std::string valid = small_valid_file(folder);
    write_raw(folder / kFileName, valid);
    std::size_t refused = 0;
    for (std::size_t place = 0; place < valid.size(); ++place) {
        const auto original = static_cast<unsigned char>(valid[place]);
        for (unsigned change = 1; change < 256; ++change) {
            replace_byte(folder / kFileName, place, original ^ change);
            try {
                const auto file = SafetensorsFile::open(folder / kFileName);
                for (const TensorInfo& tensor : file.tensors()) {
                    ASSERT_LE(tensor.offset + tensor.byte_count, valid.size());
                    ASSERT_EQ(file.read(tensor).size(), tensor.byte_count);
                }
            } catch (const FormatError&) {
                ++refused;
            }
        }
        replace_byte(folder / kFileName, place, original);
    }
    EXPECT_GT(refused, 0U);
}

}  // namespace
}  // namespace flashoptim::checkpoint
