// Files that are no data are named as what they are, and data is not taken for one of them. Each
// test walks a table of kinds.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "data_fixture.h"
#include "flashoptim/error.h"
#include "temporary_folder.h"
#include "trainer/data/file_list.h"
#include "trainer/data/token_source.h"

namespace flashoptim::trainer {
namespace {

using namespace std::string_literals;

// What a data set of this content is told, under the given name; empty if it is taken.
std::string refusal(const TemporaryFolder& folder, const std::string& name, const std::string& content,
                    RawTokens raw = {}) {
    const auto file = folder.write(name, content);
    return message_of<Error>([&] { open_tokens(file, std::int64_t{1} << 32, raw); });
}

std::string big_endian(const std::string& bytes, std::size_t width) {
    std::string reversed = bytes;
    for (std::size_t at = 0; at + width <= reversed.size(); at += width) {
        std::reverse(reversed.begin() + static_cast<std::ptrdiff_t>(at),
                     reversed.begin() + static_cast<std::ptrdiff_t>(at + width));
    }
    return reversed;
}

struct Kind {
    std::string first;
    std::string named;
    std::string last;
};

std::vector<Kind> foreign_kinds() {
    const std::string tar = "name"s + std::string(253, '\0') + "ustar\0"s + "00"s;
    return {
        {"\x1F\x8B\x08\0\0\0"s, "a gzip archive", {}},
        {"BZh91AY&SY\x12"s, "a bzip2 archive", {}},
        {"\xFD\x37zXZ\0\0"s, "an xz archive", {}},
        {"\x28\xB5\x2F\xFD\x04"s, "a Zstandard archive", {}},
        {"\x04\x22\x4D\x18\x64"s, "an LZ4 archive", {}},
        {"\x37z\xBC\xAF\x27\x1C\0"s, "a 7-Zip archive", {}},
        {"Rar!\x1A\x07\x01"s, "a RAR archive", {}},
        {"PK\x03\x04\x14"s, "a zip archive", {}},
        {"PK\x05\x06\0"s, "an empty zip archive", {}},
        {tar, "a tar archive", {}},
        {"\x93NUMPY\x01\0"s, "a NumPy array", {}},
        {"\x89HDF\r\n\x1A\n"s, "an HDF5 file", {}},
        {"ARROW1\0\0"s, "an Arrow file", {}},
        {"\xFF\xFF\xFF\xFF\x80\0\0\0"s, "an Arrow file", {}},
        {"PAR1\x15\x04"s, "a Parquet file", "PAR1"},
        {"ORC\x0A"s, "an ORC file", "ORC\x17"},
        {"Obj\x01\x04"s, "an Avro file", {}},
        {"SQLite format 3\0"s, "an SQLite database", {}},
        {"MMIDIDX\0\0"s, "an index of Megatron-LM", {}},
        {"TNTIDX\0\0"s, "an index of fairseq", {}},
        {"\x40\0\0\0\0\0\0\0{\"weight\":"s, "a safetensors file", {}},
        {"\x80\x04\x95\x10\0\0\0\0\0\0\0"s, "a pickle", "."},
        {"\x80\x05\x95\x10\0\0\0\0\0\0\0"s, "a pickle", "."},
        {"\x80\x03}q\0"s, "a pickle", "."},
        {"\x80\x02]q\0"s, "a pickle", "."},
        {"\x80\x02\x8A\x0Al\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19."s, "a PyTorch file", {}},
        {"GGUF\x03\0\0\0"s, "a model of llama.cpp", {}},
        {"tjgg\x03\0\0\0"s, "a model of llama.cpp", {}},
        {"24ka\x01\0\0\0"s, "a model of llama2.c", {}},
        {"%PDF-1.7\n"s, "a PDF document", {}},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"s,
         "a pointer of Git LFS",
         {}},
        {"/annex/objects/SHA256E-s5--1\n"s, "a pointer of git-annex", {}},
        {raw<std::int32_t>({20240326, 3, 1024, 50257}), "a GPT-2 model of llm.c", {}},
        {raw<std::int32_t>({20240327, 2, 4, 64}), "a debug state of llm.c", {}},
        {raw<std::int32_t>({20240328, 2, 50257, 50256}), "a tokenizer of llm.c", {}},
        {raw<std::int32_t>({20240522, 1, 10042, 890}), "evaluation data of llm.c", {}},
        {raw<std::int32_t>({20240527, 1, 8, 0}), "a training state of llm.c", {}},
        {raw<std::int32_t>({20240803, 5, 8192, 128256}), "a Llama 3 model", {}},
        {big_endian(raw<std::int32_t>({20240520, 1, 600}), 4), "in big-endian order", {}},
        {big_endian(raw<std::int32_t>({20240803, 1, 600}), 4), "in big-endian order", {}},
    };
}

// Whoever gives the wrong file reads which it is and what to do, whatever its name and the
// option that it was given with.
TEST(FileKind, ForeignFilesAreNamed) {
    const TemporaryFolder folder;
    for (const Kind& kind : foreign_kinds()) {
        // What follows may be text or numbers. The pointers have nothing behind them.
        const bool pointer = kind.named.find("pointer") != std::string::npos;
        for (const std::string& body : {std::string(2000, 'x'), raw(counting<std::uint16_t>(1000))}) {
            const std::string content = kind.first + (pointer ? "" : body) + kind.last;
            for (const auto& [name, width] : {std::pair{"data.txt", kNarrow},
                                              {"folder/a.bin", kNarrow},
                                              {"data.bin", kWide},
                                              {"none", kWide}}) {
                const std::string message = refusal(folder, name, content, width);
                EXPECT_TRUE(contains(message, kind.named)) << name << ": " << kind.named << ": " << message;
                EXPECT_TRUE(contains(message, (folder.path() / name).string())) << message;
                EXPECT_TRUE(contains(message, ";")) << "no remedy: " << message;
                EXPECT_FALSE(contains(message, "\n")) << message;
            }
        }
    }
}

// Every one of these is the beginning of a good text or of good tokens.
TEST(FileKind, DataIsNotTakenForAnotherKind) {
    const TemporaryFolder folder;
    const std::string more = ", and more text behind it. " + std::string(3000, 'y');
    for (const char* begin :
         {"PAR1", "ORC", "version https://git-lfs.github.com/spec/v1 is how", "GGUF is a format",
          "/annex/objects/", "BZh", "Rar!", "ustar", "%PDF files", "7zip", "{\"a\": 1}",
          "\xEF\xBB\xBF with a mark", "<!DOCTYPE html>", "\x93\xE4"}) {
        const std::string text = begin + more;
        const bool utf8 = static_cast<unsigned char>(begin[0]) != 0x93;
        EXPECT_EQ(refusal(folder, "data.txt", text).empty(), utf8)
            << begin << refusal(folder, "data.txt", text);
    }
    // One zero byte in a text is a fault of the text, not another kind of file.
    EXPECT_EQ(refusal(folder, "zero.txt", "text"s + '\0' + more), "");
    for (const std::int32_t first : {0, 1, 50256, 20240520 + 1'000'000'000, 65536 * 11 + 464}) {
        std::vector<std::uint16_t> tokens = counting<std::uint16_t>(5000);
        std::memcpy(tokens.data(), &first, sizeof first);
        EXPECT_EQ(refusal(folder, "data.bin", raw(tokens)), "") << first;
    }
}

TEST(FileKind, UnknownHeadersAreRefused) {
    const TemporaryFolder folder;
    const auto with_header = [](std::vector<std::int32_t> header, const std::string& body) {
        header.resize(256);
        return raw(header) + body;
    };
    const std::string body = raw(counting<std::uint16_t>(600));
    for (const auto& header : std::vector<std::vector<std::int32_t>>{
             {20240521, 1, 600},          // a date that llm.c might take next
             {20270101, 0, 0},            //
             {20251231, 12, 7, 1, 2, 3},  //
             {12345, 1, 600},             // a number, a version and the count of tokens
             {7, 600},                    //
             {-559038737, 2, 1200},       // ... or of bytes
             {-559038737, 1, 0, 5},       // a large number and a version
             {0x4B4F5431, 3},             // "1TOK"
         }) {
        const std::string message = refusal(folder, "data.bin", with_header(header, body), kNarrow);
        EXPECT_TRUE(contains(message, "header that is not known")) << header[0] << ": " << message;
        EXPECT_TRUE(contains(message, std::to_string(header[0]))) << message;
    }
    // Short sequences padded to 512 tokens, as some writers keep them, are tokens.
    std::vector<std::uint16_t> padded = counting<std::uint16_t>(2048);
    std::fill(padded.begin() + 12, padded.begin() + 512, std::uint16_t{0});
    EXPECT_EQ(refusal(folder, "data.bin", raw(padded), kNarrow), "");
    std::vector<std::uint32_t> wide = counting<std::uint32_t>(2048);
    std::fill(wide.begin() + 12, wide.begin() + 512, std::uint32_t{0});
    wide[0] = 128000;
    EXPECT_EQ(refusal(folder, "data.bin", raw(wide), kWide), "");
}

// A file of llm.c that was cut within its header is no file of raw tokens.
TEST(FileKind, CutHeadersAreTruncatedFiles) {
    const TemporaryFolder folder;
    const std::string whole = llmc<std::uint16_t>(20240520, 1, 100, counting<std::uint16_t>(100));
    for (const std::size_t size : {std::size_t{12}, std::size_t{13}, std::size_t{512}, std::size_t{1023},
                                   std::size_t{1024}, std::size_t{1025}, whole.size() - 2}) {
        const std::string message = refusal(folder, "cut.bin", whole.substr(0, size));
        EXPECT_TRUE(contains(message, "announces 100 tokens")) << size << ": " << message;
    }
    EXPECT_EQ(refusal(folder, "whole.bin", whole), "");
}

template <typename Token>
std::string tokens_as(const std::vector<std::uint32_t>& tokens) {
    return raw(std::vector<Token>(tokens.begin(), tokens.end()));
}

// Tokens in another width or byte order train on nonsense without a fault.
// Vocabularies from bytes to Gemma's.
TEST(RawTokens, OtherWidthsAndByteOrdersAreNamed) {
    const TemporaryFolder folder;
    for (const std::uint32_t vocabulary : {30U, 256U, 300U, 1000U, 4096U, 32000U, 50257U, 57000U, 65536U,
                                           100277U, 128256U, 151936U, 262144U}) {
        for (const std::size_t count : {std::size_t{64}, std::size_t{1000}, std::size_t{40'000}}) {
            const std::vector<std::uint32_t> tokens = random_tokens(count, vocabulary);
            const auto told = [&](const std::string& content, RawTokens raw) {
                return refusal(folder, "data.bin", content, raw);
            };
            const std::string of = std::to_string(count) + " of " + std::to_string(vocabulary) + ": ";
            const auto expect = [&](const std::string& content, RawTokens raw, const std::string& named) {
                const std::string message = told(content, raw);
                EXPECT_TRUE(contains(message, named)) << of << named << ": " << message;
            };
            const std::string wide = tokens_as<std::uint32_t>(tokens);
            const std::string longs = tokens_as<std::uint64_t>(tokens);
            const RawTokens by_default;
            EXPECT_EQ(told(wide, kWide), "") << of;
            expect(wide, by_default, "--token-width 32");
            if (vocabulary <= 65536) expect(wide, kNarrow, "--token-width 32");
            expect(longs, by_default, "64-bit");
            expect(longs, kNarrow, "64-bit");
            expect(longs, kWide, "64-bit");
            expect(big_endian(longs, 8), by_default, "big-endian");
            expect(big_endian(wide, 4), by_default, "big-endian");
            expect(big_endian(wide, 4), kWide, "big-endian");
            if (vocabulary > 65536) {
                continue;
            }
            const std::string narrow = tokens_as<std::uint16_t>(tokens);
            EXPECT_EQ(told(narrow, by_default), "") << of;
            EXPECT_EQ(told(narrow, kNarrow), "") << of;
            if (vocabulary <= 256) expect(narrow, kWide, "--token-width 16");
            // Told by the bytes alone where there are enough of them to show which is the lower one.
            if (vocabulary <= 256 || (count >= 40'000 && vocabulary <= 57000)) {
                expect(big_endian(narrow, 2), by_default, "big-endian");
            }
            // Read with 32 bits two tokens are one of more than any tokenizer has.
            const auto file = folder.write("data.bin", narrow);
            EXPECT_TRUE(
                contains(message_of<FormatError>([&] { smallest_vocabulary(file, kWide); }), "--token-width"))
                << of;
            EXPECT_TRUE(contains(message_of<FormatError>([&] { open_token_files(file, vocabulary, kWide); }),
                                 "--token-width"))
                << of;
        }
    }
}

TEST(RawTokens, FilesThatHoldNoTokensAreNamed) {
    const TemporaryFolder folder;
    for (const RawTokens width : {kNarrow, kWide}) {
        EXPECT_TRUE(
            contains(refusal(folder, "zeros.bin", std::string(4096, '\0'), width), "nothing but zeros"));
        for (const std::string& line : {"the quick brown fox\n"s, "{\"text\": \"\xC3\xBC\"}\r\n"s,
                                        "<html><body>404 not found</body></html>\n"s}) {
            std::string text;
            while (text.size() < 400) text += line;
            text.resize(400);
            EXPECT_TRUE(contains(refusal(folder, "text.bin", text, width), "is text")) << line;
        }
    }
    const auto signed_numbers = folder.write("labels.bin", raw<std::int32_t>({5, 6, -100, 7, 3, 2, 1, 9}));
    EXPECT_TRUE(contains(message_of<FormatError>([&] { smallest_vocabulary(signed_numbers, kWide); }),
                         "-100 as a signed number"));
}

// Only a guess: pairs of an item and a rating look like 32-bit tokens, and whoever says that
// they have 16 bits is believed.
TEST(RawTokens, AGivenWidthIsBelievedWhereBytesDoNotContradictIt) {
    const TemporaryFolder folder;
    std::vector<std::uint16_t> pairs;
    for (std::uint16_t item = 0; item < 1000; ++item) {
        pairs.push_back(static_cast<std::uint16_t>(item * 37));
        pairs.push_back(static_cast<std::uint16_t>(1 + item % 5));
    }
    EXPECT_TRUE(contains(refusal(folder, "pairs.bin", raw(pairs)), "looks like 32-bit tokens"));
    EXPECT_EQ(refusal(folder, "pairs.bin", raw(pairs), kNarrow), "");
}

// UTF-16 and numbers are UTF-8 as far as the letter of the standard goes.
TEST(ByteText, TextInOtherEncodingsIsRefused) {
    const TemporaryFolder folder;
    std::string utf16;
    for (const char letter : std::string(500, 'a') + "bc") utf16 += {letter, '\0'};
    EXPECT_TRUE(contains(refusal(folder, "utf16.txt", utf16), "UTF-16"));
    EXPECT_TRUE(contains(refusal(folder, "big.txt", big_endian(utf16, 2)), "UTF-16"));
    EXPECT_TRUE(contains(refusal(folder, "marked.txt", "\xFF\xFE" + utf16), "not UTF-8"));
    EXPECT_TRUE(
        contains(refusal(folder, "tokens.dat", raw(counting<std::uint16_t>(100))), "name token files .bin"));
}

// A character must not be judged by where a piece of the file ends: pieces have 1 MiB.
TEST(ByteText, CharactersAcrossPiecesAreWhole) {
    const TemporaryFolder folder;
    const std::size_t piece = std::size_t{1} << 20;
    for (std::size_t before = 0; before <= 4; ++before) {
        std::string text(piece - before, 'x');
        text += "\xF0\x9F\x98\x80 behind";
        EXPECT_EQ(refusal(folder, "good.txt", text), "") << before;
        text[piece - before + 2] = 'y';  // the character lacks its third byte
        EXPECT_TRUE(contains(refusal(folder, "bad.txt", text), "offset " + std::to_string(piece - before)))
            << before << refusal(folder, "bad.txt", text);
        text.resize(piece - before + 2);  // ... or the file ends
        EXPECT_TRUE(contains(refusal(folder, "end.txt", text), "offset " + std::to_string(piece - before)));
    }
}

}  // namespace
}  // namespace flashoptim::trainer
