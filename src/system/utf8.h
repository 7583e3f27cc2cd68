// Where characters of UTF-8 end. Knows nothing else about text.
#pragma once

#include <cstddef>
#include <string_view>

namespace flashoptim {

/// Length of the character of UTF-8 that begins `text`, which is not empty (RFC 3629); 0 where none does.
[[nodiscard]] constexpr std::size_t utf8_length(std::string_view text) {
    const auto byte = [&](std::size_t n) { return static_cast<unsigned char>(text[n]); };
    const unsigned first = byte(0);
    if (first < 0x80U) return 1;
    const std::size_t length = first >= 0xf0U ? 4 : first >= 0xe0U ? 3 : 2;
    if (first < 0xc2U || first > 0xf4U || text.size() < length) return 0;
    // No longer form of a shorter character, no surrogate, nothing beyond U+10FFFF.
    const unsigned least = first == 0xe0U ? 0xa0U : first == 0xf0U ? 0x90U : 0x80U;
    const unsigned most = first == 0xedU ? 0x9fU : first == 0xf4U ? 0x8fU : 0xbfU;
    if (byte(1) < least || byte(1) > most) return 0;
    for (std::size_t n = 2; n < length; ++n) {
        if ((byte(n) & 0xc0U) != 0x80U) return 0;
    }
    return length;
}

}  // namespace flashoptim
