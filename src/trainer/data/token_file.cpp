// Token files (.bin): raw integers as nanoGPT writes them, or behind the header of llm.c. Never interprets text.
#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "flashoptim/error.h"
#include "trainer/data/file_chain.h"
#include "trainer/data/token_source.h"

namespace flashoptim::trainer {
namespace {

// llm.c, dev/data/data_common.py: 256 int32 of header (magic, version, number of tokens), then the tokens.
constexpr std::int64_t kHeaderBytes = 256 * 4;
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

// Up to this size every token is checked when the file is opened; larger files only where they are read.
constexpr std::int64_t kCheckedAtOnce = std::int64_t{256} << 20;

std::int64_t bytes_of(TokenWidth width) { return width == TokenWidth::kUInt16 ? 2 : 4; }

struct Layout {
    TokenWidth width;
    std::int64_t tokens;
    std::int64_t byte_offset;
    std::int64_t vocabulary_size;  // 0: no header says it
};

Layout layout_of(const MappedFile& file, TokenWidth raw_width) {
    const std::span<const std::byte> bytes = file.bytes();
    const auto size = static_cast<std::int64_t>(bytes.size());
    std::array<std::int32_t, 3> header{};
    if (size >= kHeaderBytes) {
        std::memcpy(header.data(), bytes.data(), sizeof header);
        for (const HeaderKind& kind : kHeaderKinds) {
            if (header[0] != kind.magic) {
                continue;
            }
            const std::string what = file.path().string() + ": header of llm.c for " + kind.name;
            if (header[1] != kind.version) {
                throw FormatError(what + " has version " + std::to_string(header[1]) + ", known is " +
                                  std::to_string(kind.version) +
                                  "; write the file again with llm.c's data scripts");
            }
            const std::int64_t held = (size - kHeaderBytes) / bytes_of(kind.width);
            if (header[2] < 0 || header[2] != held || (size - kHeaderBytes) % bytes_of(kind.width) != 0) {
                throw FormatError(what + " announces " + std::to_string(header[2]) +
                                  " tokens, the file holds " + std::to_string(held) +
                                  "; it is truncated or damaged: copy it again");
            }
            return {kind.width, held, kHeaderBytes, kind.vocabulary_size};
        }
    }
    if (size % bytes_of(raw_width) != 0) {
        throw FormatError(file.path().string() + " has " + std::to_string(size) +
                          " bytes, not a multiple of " + std::to_string(bytes_of(raw_width)) +
                          " as its tokens need; it is truncated or of another width");
    }
    return {raw_width, size / bytes_of(raw_width), 0, 0};
}

template <typename Token>
std::int64_t largest_token(const MappedFile& file) {
    constexpr std::size_t kBytesAtOnce = std::size_t{64} << 20;
    std::span<const std::byte> rest = file.bytes();
    Token largest = 0;
    while (!rest.empty()) {
        const auto part = rest.first(std::min(rest.size(), kBytesAtOnce));
        for (std::size_t offset = 0; offset < part.size(); offset += sizeof(Token)) {
            Token token = 0;
            std::memcpy(&token, part.data() + offset, sizeof token);
            largest = std::max(largest, token);
        }
        rest = rest.subspan(part.size());
        file.release_pages();
    }
    return std::int64_t{largest};
}

class TokenFiles : public TokenSource {
public:
    TokenFiles(const std::filesystem::path& path, std::int64_t vocabulary_size, TokenWidth width)
        : vocabulary_size_(vocabulary_size) {
        std::int64_t bytes = 0;
        for (const std::filesystem::path& name : list_files(path)) {
            MappedFile file(name);
            const Layout layout = layout_of(file, width);
            if (files_.size() > 0 && layout.width != width_) {
                throw FormatError(name.string() +
                                  " has tokens of another width than the files before it; "
                                  "keep 16 and 32 bit files in folders of their own");
            }
            width_ = layout.width;
            bytes += layout.tokens * bytes_of(layout.width);
            files_.add(std::move(file), layout.tokens, layout.byte_offset);
        }
        if (files_.size() == 0) {
            throw IoError(path.string() + " is empty; give a file with tokens in it");
        }
        if (bytes <= kCheckedAtOnce) {
            check_all();
        }
    }

    std::int64_t size() const override { return files_.size(); }
    std::int64_t vocabulary_size() const override { return vocabulary_size_; }

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
        constexpr auto kWidth = static_cast<std::int64_t>(sizeof(Token));
        const std::byte* from = part.file.bytes().data() + part.byte_offset + first * kWidth;
        for (std::size_t index = 0; index < out.size(); ++index, from += kWidth) {
            Token token = 0;
            std::memcpy(&token, from, sizeof token);  // raw files promise no alignment
            if (std::int64_t{token} >= vocabulary_size_) {
                throw FormatError(part.file.path().string() + ": token " + std::to_string(token) +
                                  " at position " + std::to_string(first + static_cast<std::int64_t>(index)) +
                                  " is outside the vocabulary of " + std::to_string(vocabulary_size_) +
                                  "; raise the vocabulary size or give the width of the tokens");
            }
            out[index] = std::int64_t{token};
        }
    }

    void check_all() const {
        std::array<std::int64_t, 4096> buffer{};
        const auto step = static_cast<std::int64_t>(buffer.size());
        for (std::int64_t begin = 0; begin < size(); begin += step) {
            read(begin, std::span(buffer).first(static_cast<std::size_t>(std::min(step, size() - begin))));
        }
        for (const FilePart& part : files_.parts()) {
            part.file.release_pages();
        }
    }

    std::int64_t vocabulary_size_;
    TokenWidth width_ = TokenWidth::kUInt16;
    FileChain files_;
};

}  // namespace

std::unique_ptr<TokenSource> open_token_files(const std::filesystem::path& path, std::int64_t vocabulary_size,
                                              TokenWidth width) {
    return std::make_unique<TokenFiles>(path, vocabulary_size, width);
}

std::int64_t smallest_vocabulary(const std::filesystem::path& path, TokenWidth width) {
    std::int64_t needed = 1;
    for (const std::filesystem::path& name : list_files(path)) {
        const MappedFile file(name);
        const Layout layout = layout_of(file, width);
        if (layout.vocabulary_size > 0) {
            needed = std::max(needed, layout.vocabulary_size);
        } else {
            needed = std::max(needed,
                              1 + (layout.width == TokenWidth::kUInt16 ? largest_token<std::uint16_t>(file)
                                                                       : largest_token<std::uint32_t>(file)));
        }
    }
    return needed;
}

}  // namespace flashoptim::trainer
