// The table of known kinds and their signatures.
#include "trainer/data/file_kind.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <vector>

#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

using namespace std::string_view_literals;

std::string_view text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <typename Integer>
Integer number_at(std::span<const std::byte> bytes, std::size_t offset) {
    Integer value = 0;
    if (offset + sizeof value <= bytes.size()) {
        std::memcpy(&value, bytes.data() + offset, sizeof value);
    }
    return value;
}

struct Signature {
    std::string_view bytes;
    std::string_view what;
    std::size_t offset = 0;
};

constexpr auto kArrow =
    "an Arrow file (Hugging Face datasets); write its text to a .txt file, or its tokens to a .bin file"sv;
constexpr auto kGgml = "a model of llama.cpp; give text or tokens"sv;
constexpr auto kLlama2c = "a model of llama2.c; give text or tokens"sv;
constexpr auto kPdf = "a PDF document; write its text to a .txt file: pdftotext"sv;
constexpr auto kTable = "; write its text to a .txt file, or its tokens to a .bin file"sv;
constexpr auto kNumpy =
    "a NumPy array (.npy); write its tokens to a .bin file: "
    "numpy.load(FILE).astype('uint16').tofile('tokens.bin')"sv;
constexpr auto kTorch =
    "a PyTorch file; write its tokens to a .bin file: tensor.numpy().astype('uint16').tofile('tokens.bin')"sv;

// Signatures that neither text nor tokens begin with by accident: long, or with bytes that text does not
// have.
constexpr std::array kSignatures = {
    Signature{"\x1F\x8B\x08"sv, "a gzip archive; unpack it first: gunzip"},
    Signature{"BZh91AY&SY"sv, "a bzip2 archive; unpack it first: bunzip2"},
    Signature{"\xFD\x37zXZ\0"sv, "an xz archive; unpack it first: unxz"},
    Signature{"\x28\xB5\x2F\xFD"sv, "a Zstandard archive; unpack it first: unzstd"},
    Signature{"\x04\x22\x4D\x18"sv, "an LZ4 archive; unpack it first: unlz4"},
    Signature{"\x37z\xBC\xAF\x27\x1C"sv, "a 7-Zip archive; unpack it first: 7z x"},
    Signature{"Rar!\x1A\x07"sv, "a RAR archive; unpack it first: unrar x"},
    Signature{"PK\x03\x04"sv, "a zip archive (.zip, .npz, .pt and others are); unpack it first: unzip"},
    Signature{"PK\x05\x06"sv, "an empty zip archive; give text or tokens"},
    Signature{"ustar\0"sv, "a tar archive; unpack it first: tar -xf", 257},
    Signature{"ustar  \0"sv, "a tar archive; unpack it first: tar -xf", 257},
    Signature{"\x93NUMPY"sv, kNumpy},
    Signature{"\x89HDF\r\n\x1A\n"sv, "an HDF5 file; write its tokens to a .bin file"},
    Signature{"ARROW1\0\0"sv, kArrow},
    Signature{"Obj\x01"sv, "an Avro file; write its text to a .txt file"},
    Signature{"SQLite format 3\0"sv, "an SQLite database; write its text to a .txt file"},
    Signature{"MMIDIDX\0\0"sv, "an index of Megatron-LM; give the .bin file beside it"},
    Signature{"TNTIDX\0\0"sv, "an index of fairseq; give the .bin file beside it"},
    Signature{"\x80\x02\x8A\x0Al\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19"sv, kTorch},
    Signature{"GGUF\x01\0\0\0"sv, kGgml},
    Signature{"GGUF\x02\0\0\0"sv, kGgml},
    Signature{"GGUF\x03\0\0\0"sv, kGgml},
    Signature{"fmgg\x01\0\0\0"sv, kGgml},
    Signature{"tjgg\x01\0\0\0"sv, kGgml},
    Signature{"tjgg\x02\0\0\0"sv, kGgml},
    Signature{"tjgg\x03\0\0\0"sv, kGgml},
    Signature{"24ka\x01\0\0\0"sv, kLlama2c},
    Signature{"24ka\x02\0\0\0"sv, kLlama2c},
    Signature{"%PDF-1."sv, kPdf},
    Signature{"%PDF-2."sv, kPdf},
};

struct KnownMagic {
    std::int32_t magic;
    std::string_view what;
};

// llm.c: train_gpt2.py, train_llama3.py, train_gpt2.cu and dev/data/data_common.py.
constexpr std::array kMagics = {
    KnownMagic{20240326, "a GPT-2 model of llm.c"},
    KnownMagic{20240327, "a debug state of llm.c"},
    KnownMagic{20240328, "a tokenizer of llm.c"},
    KnownMagic{20240522, "evaluation data of llm.c with multiple choices (HellaSwag, MMLU)"},
    KnownMagic{20240527, "a training state of llm.c"},
    KnownMagic{20240803, "a Llama 3 model or debug state of llm.c"},
};
constexpr std::array kTokenMagics = {20240520, 20240801};

constexpr std::int32_t reversed(std::int32_t number) {
    const auto bits = static_cast<std::uint32_t>(number);
    return static_cast<std::int32_t>(bits >> 24 | (bits >> 8 & 0xFF00U) | (bits << 8 & 0xFF0000U) |
                                     bits << 24);
}

bool is_known(std::int32_t magic) {
    return std::any_of(kMagics.begin(), kMagics.end(),
                       [&](const KnownMagic& known) { return known.magic == magic; }) ||
           std::find(kTokenMagics.begin(), kTokenMagics.end(), magic) != kTokenMagics.end();
}

// The length of a JSON object, then the object.
bool is_safetensors(const FileEnds& ends) {
    const std::string_view first = text_of(ends.first);
    const auto header = number_at<std::uint64_t>(ends.first, 0);
    return first.size() >= 10 && header >= 2 && header <= static_cast<std::uint64_t>(ends.size) - 8 &&
           (first.substr(8, 2) == "{\"" || first.substr(8, 2) == "{}");
}

// A stream of messages, each of which begins with -1 and the size of its metadata, a multiple of 8.
bool is_arrow_stream(const FileEnds& ends) {
    const auto metadata = number_at<std::int32_t>(ends.first, 4);
    return ends.first.size() >= 8 && number_at<std::int32_t>(ends.first, 0) == -1 && metadata > 0 &&
           metadata % 8 == 0 && metadata <= ends.size - 8;
}

// Protocols 2 to 5. Their first two bytes alone are no proof: a frame follows, or an opcode that builds
// something, and '.' ends all.
bool is_pickle(const FileEnds& ends) {
    const std::string_view first = text_of(ends.first);
    if (first.size() < 4 || first[0] != '\x80' || text_of(ends.last).back() != '.') {
        return false;
    }
    constexpr std::string_view kBuilders = "}](c)XK";
    const char protocol = first[1];
    return ((protocol == 2 || protocol == 3) && kBuilders.find(first[2]) != std::string_view::npos) ||
           ((protocol == 4 || protocol == 5) && (first[2] == '\x95' || ends.size < 16));
}

bool is_lfs_pointer(const FileEnds& ends) {
    const std::string_view first = text_of(ends.first);
    return ends.size < kHeadBytes && first.starts_with("version https://git-lfs.github.com/spec/") &&
           first.find("\noid sha256:") != std::string_view::npos;
}

// Signatures that text might begin with, where the file's end or length says that it is none.
std::optional<std::string> kind_by_both_ends(const FileEnds& ends) {
    const std::string_view first = text_of(ends.first);
    const std::string_view last = text_of(ends.last);
    if (is_lfs_pointer(ends)) {
        return "a pointer of Git LFS, not the file that it stands for; fetch that: git lfs pull";
    }
    // One line that is a path.
    if (ends.size < kHeadBytes && first.starts_with("/annex/objects/") &&
        first.find_first_of(" \n") >= first.size() - 1) {
        return "a pointer of git-annex, not the file that it stands for; fetch that: git annex get";
    }
    if (ends.size >= 12 && first.starts_with("PAR1") && last.ends_with("PAR1")) {
        return "a Parquet file" + std::string(kTable);
    }
    if (ends.size >= 12 && first.starts_with("ORC") && last.substr(0, last.size() - 1).ends_with("ORC")) {
        return "an ORC file" + std::string(kTable);
    }
    if (is_safetensors(ends)) {
        return "a safetensors file; give text or tokens";
    }
    if (is_arrow_stream(ends)) {
        return std::string(kArrow);
    }
    if (is_pickle(ends)) {
        return "a pickle of Python; write its tokens to a .bin file: "
               "numpy.array(tokens, 'uint16').tofile('tokens.bin')";
    }
    return std::nullopt;
}

// A date as llm.c's magic numbers are: 20240520.
bool is_date(std::int32_t number) {
    const std::int32_t year = number / 10'000;
    const std::int32_t month = number / 100 % 100;
    const std::int32_t day = number % 100;
    return year >= 2015 && year < 2100 && month >= 1 && month <= 12 && day >= 1 && day <= 31;
}

}  // namespace

std::optional<std::string> foreign_kind(const FileEnds& ends) {
    const std::string_view first = text_of(ends.first);
    for (const Signature& signature : kSignatures) {
        if (first.size() >= signature.offset && first.substr(signature.offset).starts_with(signature.bytes)) {
            return std::string(signature.what);
        }
    }
    if (auto kind = kind_by_both_ends(ends)) {
        return kind;
    }
    const auto magic = number_at<std::int32_t>(ends.first, 0);
    for (const KnownMagic& known : kMagics) {
        if (magic == known.magic) {
            return std::string(known.what) + "; give a token file of its data scripts";
        }
    }
    if (is_known(reversed(magic))) {
        return "a file of llm.c in big-endian order; write it again on a little-endian machine";
    }
    return std::nullopt;
}

bool has_unknown_header(const FileEnds& ends, bool narrow_tokens) {
    const auto magic = number_at<std::int32_t>(ends.first, 0);
    const auto version = number_at<std::int32_t>(ends.first, 4);
    constexpr std::int32_t kLargestVersion = 0xFFFF;
    if (ends.first.size() < 8 || is_known(magic) || version < 0 || version > kLargestVersion) {
        return false;
    }
    if (is_date(magic)) {
        return true;
    }
    constexpr std::size_t kUsed = 16;  // numbers that such headers have at most
    if (ends.size <= kHeaderBytes || magic == 0 ||
        std::any_of(ends.first.begin() + kUsed * 4, ends.first.begin() + kHeaderBytes,
                    [](std::byte byte) { return byte != std::byte{0}; })) {
        return false;
    }
    const std::int64_t rest = ends.size - kHeaderBytes;
    for (std::size_t index = 1; index < kUsed; ++index) {
        const std::int64_t number = number_at<std::int32_t>(ends.first, index * 4);
        if (number == rest || number * 2 == rest || number * 4 == rest) {
            return true;
        }
    }
    // As tokens of 16 bits: a few, and then nothing but padding. The second one of the four is not 0, the
    // last one is.
    return narrow_tokens && (magic < 0 || magic > 0xFFFF) && version > 0;
}

void refuse_foreign_kind(const DataFile& file, std::int64_t token_bytes) {
    if (file.size() == 0) {
        return;
    }
    std::vector<std::byte> first(static_cast<std::size_t>(std::min(file.size(), kHeadBytes)));
    file.read(0, first);
    std::vector<std::byte> last(static_cast<std::size_t>(std::min<std::int64_t>(file.size(), 8)));
    file.read(file.size() - static_cast<std::int64_t>(last.size()), last);
    const FileEnds ends{first, last, file.size()};
    if (const auto kind = foreign_kind(ends)) {
        throw FormatError(file.path().string() + " is " + *kind);
    }
    if (token_bytes > 0 && has_unknown_header(ends, token_bytes == 2)) {
        throw FormatError(file.path().string() +
                          " begins with a header that is not known (its first number is " +
                          std::to_string(number_at<std::int32_t>(first, 0)) +
                          "); write the tokens without a header, or with llm.c's data scripts");
    }
}

}  // namespace flashoptim::trainer
