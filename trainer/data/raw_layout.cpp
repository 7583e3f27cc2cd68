// The rules by which the bytes of raw tokens contradict a width.
#include "trainer/data/raw_layout.h"

#include <algorithm>
#include <initializer_list>

namespace flashoptim::trainer {
namespace {

// Fewer bytes may look like anything.
constexpr std::int64_t kFewestBytes = 16;
constexpr std::int64_t kFewestForText = 128;
constexpr std::int64_t kFewestForGuess = 128;

// No tokenizer has 2^20 tokens: the upper half of a 32-bit token is below this.
constexpr std::size_t kUpperHalves = 16;

// Bytes that text has: printable ones, those of UTF-8 beyond ASCII, tab, line feed, form feed, carriage
// return.
bool in_text(std::size_t byte) {
    return (byte >= 0x20 && byte != 0x7F) || byte == '\t' || byte == '\n' || byte == '\f' || byte == '\r';
}

}  // namespace

void RawLayout::add(std::span<const std::byte> bytes) {
    for (std::size_t index = 0; index < bytes.size(); ++index) {
        ++by_place_[index % by_place_.size()][std::to_integer<std::size_t>(bytes[index])];
    }
    count_ += static_cast<std::int64_t>(bytes.size());
}

bool RawLayout::below(std::size_t limit, std::size_t period,
                      std::initializer_list<std::size_t> places) const {
    return std::all_of(places.begin(), places.end(), [&](std::size_t place) {
        for (std::size_t at = place; at < by_place_.size(); at += period) {
            const Histogram& seen = by_place_[at];
            if (std::any_of(seen.begin() + static_cast<std::ptrdiff_t>(limit), seen.end(),
                            [](std::uint64_t count) { return count > 0; })) {
                return false;
            }
        }
        return true;
    });
}

int RawLayout::different(std::size_t place, std::size_t period) const {
    int values = 0;
    for (std::size_t byte = 0; byte < by_place_[0].size(); ++byte) {
        std::uint64_t count = 0;
        for (std::size_t at = place; at < by_place_.size(); at += period) count += by_place_[at][byte];
        values += count > 0 ? 1 : 0;
    }
    return values;
}

bool RawLayout::is_text() const {
    for (const Histogram& seen : by_place_) {
        for (std::size_t byte = 0; byte < seen.size(); ++byte) {
            if (seen[byte] > 0 && !in_text(byte)) return false;
        }
    }
    return true;
}

std::optional<std::string> RawLayout::contradiction(std::int64_t token_bytes, bool width_given) const {
    const auto zero = [&](std::size_t period, std::initializer_list<std::size_t> places) {
        return below(1, period, places);
    };
    constexpr auto kReverse = "; write them in little-endian order: numpy's byteswap().tofile('tokens.bin')";
    if (count_ < kFewestBytes) {
        return std::nullopt;
    }
    if (zero(1, {0})) {
        return "holds nothing but zeros; it was made and never written: write its tokens again";
    }
    if (count_ >= kFewestForText && is_text()) {
        return "is text and no tokens; give it another ending than .bin";
    }
    if (zero(8, {3, 4, 5, 6, 7}) && below(kUpperHalves, 8, {2})) {
        return "has 64-bit tokens; write them with 32 bits and give --token-width 32: "
               "numpy.fromfile(FILE, 'int64').astype('uint32').tofile('tokens.bin')";
    }
    if (count_ >= kFewestForGuess && zero(8, {0, 1, 2, 3, 4}) && different(7, 8) > 1) {
        return std::string("has 64-bit tokens in big-endian order") + kReverse;
    }
    if (token_bytes == 2) {
        if (zero(4, {2, 3})) {
            return "has 32-bit tokens (every second 16-bit word is 0); give --token-width 32";
        }
        if (count_ >= kFewestForGuess && zero(4, {0}) && below(kUpperHalves, 4, {1}) && different(3, 4) > 1 &&
            !zero(4, {2})) {
            return std::string("has 32-bit tokens in big-endian order") + kReverse;
        }
        // Tokens use every lower byte before they use many upper ones.
        if (zero(2, {0}) || (different(1, 2) >= 250 && different(0, 2) <= 224)) {
            return std::string("has 16-bit tokens in big-endian order") + kReverse;
        }
        if (!width_given && count_ >= kFewestForGuess && zero(4, {3}) && below(kUpperHalves, 4, {2}) &&
            !zero(4, {1})) {
            return "looks like 32-bit tokens (every second 16-bit word is below 16); give --token-width 32, "
                   "or --token-width 16 if it has 16-bit tokens";
        }
        return std::nullopt;
    }
    if (zero(4, {0})) {
        return std::string("has 32-bit tokens in big-endian order") + kReverse;
    }
    if (zero(2, {1}) && !zero(4, {2})) {
        return "has 16-bit tokens (every 16-bit word is below 256); give --token-width 16";
    }
    return std::nullopt;
}

}  // namespace flashoptim::trainer
