// Text as a sequence of bytes, checked to be UTF-8. Never splits text into anything but bytes.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "flashoptim/error.h"
#include "flashoptim/system/utf8.h"
#include "trainer/data/file_chain.h"
#include "trainer/data/file_kind.h"
#include "trainer/data/file_list.h"
#include "trainer/data/token_source.h"
#include "trainer/data/utf8_text.h"

namespace flashoptim::trainer {
namespace {

constexpr std::int64_t kByteVocabulary = 256;

// UTF-8 in pieces: one that ends within a character is judged with the next, one that begins within a
// character where a sample was cut off is judged from the next character on.
class Utf8Check {
public:
    // Throws FormatError.
    void add(const std::filesystem::path& name, std::int64_t offset, std::span<const std::byte> bytes) {
        if (offset != end_) {
            held_.clear();
            while (offset > 0 && !bytes.empty() && (bytes.front() & std::byte{0xC0}) == std::byte{0x80}) {
                bytes = bytes.subspan(1);
                ++offset;
            }
        }
        end_ = offset + static_cast<std::int64_t>(bytes.size());
        const std::int64_t begin = offset - static_cast<std::int64_t>(held_.size());
        held_.insert(held_.end(), bytes.begin(), bytes.end());
        const auto fault = first_invalid_utf8(held_);
        const std::size_t good = fault.value_or(held_.size());
        if (held_.size() - good >= kLongestCharacter) {
            refuse(name, begin + static_cast<std::int64_t>(good));
        }
        held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(good));
    }

    // After the last piece. Throws FormatError.
    void finish(const std::filesystem::path& name) const {
        if (!held_.empty()) refuse(name, end_ - static_cast<std::int64_t>(held_.size()));
    }

private:
    static constexpr std::size_t kLongestCharacter = 4;

    [[noreturn]] static void refuse(const std::filesystem::path& name, std::int64_t offset) {
        throw FormatError(name.string() + " is not UTF-8 text: the byte at offset " + std::to_string(offset) +
                          " begins no character; convert the file to UTF-8, or name token files .bin");
    }

    std::vector<std::byte> held_;  // a character whose end is in the next piece
    std::int64_t end_ = 0;         // of the pieces so far
};

// Zero bytes are UTF-8, but a file with many is UTF-16, or numbers. Some are in real texts.
void refuse_zeros(const std::filesystem::path& name, std::span<const std::byte> bytes) {
    constexpr std::ptrdiff_t kMostZeros = 16;  // one of them in so many bytes
    if (std::count(bytes.begin(), bytes.end(), std::byte{0}) * kMostZeros >
        static_cast<std::ptrdiff_t>(bytes.size())) {
        throw FormatError(
            name.string() +
            " is not UTF-8 text: many of its bytes are zero, as in UTF-16 or in tokens; convert "
            "the file to UTF-8, or name token files .bin");
    }
}

class ByteText : public TokenSource {
public:
    explicit ByteText(const std::filesystem::path& path) {
        std::vector<std::unique_ptr<DataFile>> files = open_files(list_files(path));
        const std::int64_t total = total_size(files);
        for (std::unique_ptr<DataFile>& file : files) {
            refuse_foreign_kind(*file, 0);
            Utf8Check check;
            file->scan(blocks_to_scan(file->size(), total),
                       [&](std::int64_t offset, std::span<const std::byte> bytes) {
                           if (offset == 0) refuse_zeros(file->path(), bytes);
                           check.add(file->path(), offset, bytes);
                       });
            check.finish(file->path());
            const std::int64_t size = file->size();
            files_.add(std::move(file), size, 0);
        }
        if (files_.size() == 0) {
            throw IoError(path.string() + " is empty; give a file with text in it");
        }
    }

    std::int64_t size() const override { return files_.size(); }
    std::int64_t vocabulary_size() const override { return kByteVocabulary; }
    SourceIdentity identity() const override { return files_.identity("bytes"); }

    void read(std::int64_t begin, std::span<std::int64_t> out) const override {
        files_.for_each_part(
            begin, static_cast<std::int64_t>(out.size()),
            [&](const FilePart& part, std::int64_t first, std::int64_t count, std::int64_t done) {
                const auto to = out.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count));
                part.file->read(first, std::as_writable_bytes(to).first(to.size()));
                widen<std::uint8_t>(to);
            });
    }

private:
    FileChain files_;
};

}  // namespace

std::optional<std::size_t> first_invalid_utf8(std::span<const std::byte> bytes) {
    std::size_t offset = 0;
    while (offset < bytes.size()) {
        // Eight ASCII bytes at once: nearly all of most texts.
        std::uint64_t eight = 0;
        if (bytes.size() - offset >= sizeof eight) {
            std::memcpy(&eight, bytes.data() + offset, sizeof eight);
            if ((eight & 0x8080808080808080U) == 0) {
                offset += sizeof eight;
                continue;
            }
        }
        const auto rest = bytes.subspan(offset);
        const auto length = utf8_length({reinterpret_cast<const char*>(rest.data()), rest.size()});
        if (length == 0) {
            return offset;
        }
        offset += length;
    }
    return std::nullopt;
}

std::unique_ptr<TokenSource> open_byte_text(const std::filesystem::path& path) {
    return std::make_unique<ByteText>(path);
}

}  // namespace flashoptim::trainer
