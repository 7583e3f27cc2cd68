// Text as a sequence of bytes, checked to be UTF-8. Never splits text into anything but bytes.
#include <cstring>
#include <string>

#include "flashoptim/error.h"
#include "trainer/data/file_chain.h"
#include "trainer/data/token_source.h"
#include "trainer/data/utf8.h"

namespace flashoptim::trainer {
namespace {

constexpr std::int64_t kByteVocabulary = 256;

// Length of the well-formed sequence that begins the range, 0 if there is none.
std::size_t sequence_length(std::span<const std::byte> bytes) {
    const auto at = [&](std::size_t index) { return std::to_integer<unsigned>(bytes[index]); };
    const unsigned lead = at(0);
    if (lead < 0x80) {
        return 1;
    }
    const std::size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                               : lead >= 0xE0 && lead <= 0xEF ? 3
                               : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                              : 0;
    if (length == 0 || bytes.size() < length) {
        return 0;
    }
    // The second byte excludes overlong forms (E0, F0), surrogates (ED) and what lies beyond U+10FFFF (F4).
    const unsigned lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (at(1) < lowest || at(1) > highest) {
        return 0;
    }
    for (std::size_t index = 2; index < length; ++index) {
        if ((at(index) & 0xC0) != 0x80) {
            return 0;
        }
    }
    return length;
}

class ByteText : public TokenSource {
public:
    explicit ByteText(const std::filesystem::path& path) {
        for (const std::filesystem::path& name : list_files(path)) {
            MappedFile file(name);
            if (const auto offset = first_invalid_utf8(file.bytes())) {
                throw FormatError(
                    name.string() + " is not UTF-8 text: the byte at offset " + std::to_string(*offset) +
                    " begins no character; convert the file to UTF-8, or name token files .bin");
            }
            file.release_pages();
            const auto size = static_cast<std::int64_t>(file.bytes().size());
            files_.add(std::move(file), size, 0);
        }
        if (files_.size() == 0) {
            throw IoError(path.string() + " is empty; give a file with text in it");
        }
    }

    std::int64_t size() const override { return files_.size(); }
    std::int64_t vocabulary_size() const override { return kByteVocabulary; }

    void read(std::int64_t begin, std::span<std::int64_t> out) const override {
        files_.for_each_part(
            begin, static_cast<std::int64_t>(out.size()),
            [&](const FilePart& part, std::int64_t first, std::int64_t count, std::int64_t done) {
                const auto bytes = part.file.bytes().subspan(static_cast<std::size_t>(first),
                                                             static_cast<std::size_t>(count));
                auto to = out.begin() + done;
                for (const std::byte byte : bytes) {
                    *to++ = std::to_integer<std::int64_t>(byte);
                }
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
        const std::size_t length = sequence_length(bytes.subspan(offset));
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
