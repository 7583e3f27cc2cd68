// Token files (.bin): raw integers as nanoGPT writes them, or behind the header of llm.c. Never interprets
// text.
#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "flashoptim/error.h"
#include "trainer/data/file_chain.h"
#include "trainer/data/file_kind.h"
#include "trainer/data/file_list.h"
#include "trainer/data/raw_layout.h"
#include "trainer/data/token_source.h"

namespace flashoptim::trainer {
namespace {

// llm.c, dev/data/data_common.py: 256 int32 of header (magic, version, number of tokens), then the tokens.
struct HeaderKind {
    std::int32_t magic;
    std::int32_t version;
    TokenWidth width;
    std::int64_t vocabulary_size;
    const char* name;
};
constexpr std::array<HeaderKind, 2> kHeaderKinds = {{
    {20240520, 1, TokenWidth::kUInt16, 50'257, "GPT-2"},
    {20240801, 7, TokenWidth::kUInt32, 128'256, "Llama 3"},
}};

// Above what tokenizers have: the largest in use have some 260,000 tokens.
constexpr std::int64_t kLargestGuessedVocabulary = std::int64_t{1} << 20;

std::int64_t bytes_of(TokenWidth width) { return width == TokenWidth::kUInt16 ? 2 : 4; }

struct Layout {
    TokenWidth width;
    std::int64_t tokens;
    std::int64_t byte_offset;
    std::int64_t vocabulary_size;  // 0: no header says it
};

Layout layout_behind(const HeaderKind& kind, std::int32_t version, std::int32_t announced,
                     const DataFile& file) {
    const std::string what = file.path().string() + ": header of llm.c for " + kind.name;
    if (version != kind.version) {
        throw FormatError(what + " has version " + std::to_string(version) + ", known is " +
                          std::to_string(kind.version) + "; write the file again with llm.c's data scripts");
    }
    const std::int64_t bytes = std::max<std::int64_t>(0, file.size() - kHeaderBytes);
    const std::int64_t held = bytes / bytes_of(kind.width);
    if (file.size() < kHeaderBytes || announced != held || bytes % bytes_of(kind.width) != 0) {
        throw FormatError(what + " announces " + std::to_string(announced) + " tokens, the file holds " +
                          std::to_string(held) + "; it is truncated or damaged: copy it again");
    }
    return {kind.width, held, kHeaderBytes, kind.vocabulary_size};
}

// Samples from all over a file that show how its raw tokens lie: of one file 64, of many fewer.
std::int64_t layout_blocks(std::size_t files) {
    constexpr std::int64_t kInAll = 1024;
    return std::clamp<std::int64_t>(kInAll / static_cast<std::int64_t>(files), 2, 64);
}

void require_raw_layout(const DataFile& file, RawTokens raw, std::int64_t blocks) {
    RawLayout layout;
    std::vector<std::byte> bytes;
    for (const ByteRange& range : sampled_ranges(file.size(), blocks)) {
        bytes.resize(static_cast<std::size_t>(range.size));
        file.read(range.begin, bytes);
        layout.add(bytes);
    }
    if (const auto contradiction = layout.contradiction(bytes_of(raw.width), raw.width_given)) {
        throw FormatError(file.path().string() + " " + *contradiction);
    }
}

// Where the tokens of a file are. Throws FormatError for what is no token file or of another width.
Layout layout_of(const DataFile& file, RawTokens raw, std::int64_t blocks) {
    refuse_foreign_kind(file, bytes_of(raw.width));
    std::array<std::int32_t, 3> header{};
    if (file.size() >= static_cast<std::int64_t>(sizeof header)) {
        file.read(0, std::as_writable_bytes(std::span(header)));
        for (const HeaderKind& kind : kHeaderKinds) {
            if (header[0] == kind.magic) return layout_behind(kind, header[1], header[2], file);
        }
    }
    const std::int64_t width = bytes_of(raw.width);
    if (file.size() % width != 0) {
        throw FormatError(file.path().string() + " has " + std::to_string(file.size()) +
                          " bytes, not a multiple of " + std::to_string(width) +
                          " as its tokens need; copy it again if it is truncated, or give its --token-width");
    }
    require_raw_layout(file, raw, blocks);
    return {raw.width, file.size() / width, 0, 0};
}

// Index of the first token that is not below `limit`.
template <typename Token>
std::size_t first_outside(std::span<const std::byte> bytes, std::int64_t limit) {
    const std::size_t count = bytes.size() / sizeof(Token);
    for (std::size_t index = 0; index < count; ++index) {
        Token token = 0;
        std::memcpy(&token, bytes.data() + index * sizeof token, sizeof token);
        if (std::int64_t{token} >= limit) return index;
    }
    return count;
}

template <typename Token>
std::int64_t largest_token(std::span<const std::byte> bytes) {
    Token largest = 0;
    for (std::size_t offset = 0; offset + sizeof(Token) <= bytes.size(); offset += sizeof(Token)) {
        Token token = 0;
        std::memcpy(&token, bytes.data() + offset, sizeof token);
        largest = std::max(largest, token);
    }
    return std::int64_t{largest};
}

std::int64_t largest_token(std::span<const std::byte> bytes, TokenWidth width) {
    return width == TokenWidth::kUInt16 ? largest_token<std::uint16_t>(bytes)
                                        : largest_token<std::uint32_t>(bytes);
}

std::string shown(std::int64_t token) {
    constexpr std::int64_t kSigned = std::int64_t{1} << 31;
    return "token " + std::to_string(token) +
           (token >= kSigned ? " (" + std::to_string(token - 2 * kSigned) + " as a signed number)" : "");
}

class TokenFiles : public TokenSource {
public:
    TokenFiles(const std::filesystem::path& path, std::int64_t vocabulary_size, RawTokens raw)
        : vocabulary_size_(vocabulary_size) {
        std::vector<std::unique_ptr<DataFile>> files = open_files(list_files(path));
        const std::int64_t total = total_size(files);
        for (std::unique_ptr<DataFile>& file : files) {
            if (file->size() == 0) {
                continue;
            }
            const Layout layout = layout_of(*file, raw, layout_blocks(files.size()));
            if (files_.size() > 0 && layout.width != width_) {
                throw FormatError(file->path().string() +
                                  " has tokens of another width than the files before it; "
                                  "keep 16 and 32 bit files in folders of their own");
            }
            width_ = layout.width;
            file->scan(blocks_to_scan(file->size(), total),
                       [&](std::int64_t offset, std::span<const std::byte> bytes) {
                           const std::int64_t header = std::max<std::int64_t>(0, layout.byte_offset - offset);
                           check(*file, offset + header - layout.byte_offset,
                                 bytes.subspan(std::min(bytes.size(), static_cast<std::size_t>(header))));
                       });
            files_.add(std::move(file), layout.tokens, layout.byte_offset);
        }
        if (files_.size() == 0) {
            throw IoError(path.string() + " is empty; give a file with tokens in it");
        }
    }

    std::int64_t size() const override { return files_.size(); }
    std::int64_t vocabulary_size() const override { return vocabulary_size_; }
    SourceIdentity identity() const override {
        return files_.identity(width_ == TokenWidth::kUInt16 ? "uint16" : "uint32");
    }

    void read(std::int64_t begin, std::span<std::int64_t> out) const override {
        files_.for_each_part(
            begin, static_cast<std::int64_t>(out.size()),
            [&](const FilePart& part, std::int64_t first, std::int64_t count, std::int64_t done) {
                const auto to = out.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count));
                if (width_ == TokenWidth::kUInt16) {
                    copy<std::uint16_t>(part, first, to);
                } else {
                    copy<std::uint32_t>(part, first, to);
                }
            });
    }

private:
    template <typename Token>
    void copy(const FilePart& part, std::int64_t first, std::span<std::int64_t> out) const {
        const auto bytes = std::as_writable_bytes(out).first(out.size() * sizeof(Token));
        const auto first_byte = first * static_cast<std::int64_t>(sizeof(Token));
        part.file->read(part.byte_offset + first_byte, bytes);
        check(*part.file, first_byte, bytes);
        widen<Token>(out);
    }

    // Tokens outside the vocabulary, among those that lie `first_byte` behind the file's first token.
    void check(const DataFile& file, std::int64_t first_byte, std::span<const std::byte> bytes) const {
        if (largest_token(bytes, width_) < vocabulary_size_) {
            return;
        }
        const std::size_t index = width_ == TokenWidth::kUInt16
                                      ? first_outside<std::uint16_t>(bytes, vocabulary_size_)
                                      : first_outside<std::uint32_t>(bytes, vocabulary_size_);
        const std::int64_t width = bytes_of(width_);
        const std::int64_t token = largest_token(
            bytes.subspan(index * static_cast<std::size_t>(width), static_cast<std::size_t>(width)), width_);
        throw FormatError(file.path().string() + ": " + shown(token) + " at position " +
                          std::to_string(first_byte / width + static_cast<std::int64_t>(index)) +
                          " is outside the vocabulary of " + std::to_string(vocabulary_size_) +
                          "; raise --vocabulary-size or give the width of the tokens with --token-width");
    }

    std::int64_t vocabulary_size_;
    TokenWidth width_ = TokenWidth::kUInt16;
    FileChain files_;
};

}  // namespace

std::unique_ptr<TokenSource> open_token_files(const std::filesystem::path& path, std::int64_t vocabulary_size,
                                              RawTokens raw) {
    return std::make_unique<TokenFiles>(path, vocabulary_size, raw);
}

std::int64_t smallest_vocabulary(const std::filesystem::path& path, RawTokens raw) {
    std::int64_t needed = 1;
    const std::vector<std::unique_ptr<DataFile>> files = open_files(list_files(path));
    for (const std::unique_ptr<DataFile>& file : files) {
        const Layout layout = layout_of(*file, raw, layout_blocks(files.size()));
        if (layout.vocabulary_size > 0) {
            needed = std::max(needed, layout.vocabulary_size);
            continue;
        }
        file->scan(0, [&](std::int64_t, std::span<const std::byte> bytes) {
            const std::int64_t largest = largest_token(bytes, layout.width);
            if (largest >= kLargestGuessedVocabulary) {
                throw FormatError(
                    file->path().string() + ": " + shown(largest) +
                    " is beyond every tokenizer's vocabulary; give the width of the tokens with "
                    "--token-width, or --vocabulary-size if the token is meant");
            }
            needed = std::max(needed, largest + 1);
        });
    }
    return needed;
}

}  // namespace flashoptim::trainer
