// The length of UTF-8 characters.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstddef>
#include <string_view>

namespace flashoptim {

/// The length of the UTF-8 character (RFC 3629) at the beginning of `text`, which is not empty; 0 if there is
/// none.
[[nodiscard]] constexpr std::size_t utf8_length(std::string_view text) {
    const auto byte = [&](std::size_t n) { return static_cast<unsigned char>(text[n]); };
    const unsigned first = byte(0);
    if (first < 0x80U) return 1;
    const std::size_t length = first >= 0xf0U ? 4 : first >= 0xe0U ? 3 : 2;
    if (first < 0xc2U || first > 0xf4U || text.size() < length) return 0;
    // Refuses overlong forms, surrogates and code points above U+10FFFF.
    const unsigned least = first == 0xe0U ? 0xa0U : first == 0xf0U ? 0x90U : 0x80U;
    const unsigned most = first == 0xedU ? 0x9fU : first == 0xf4U ? 0x8fU : 0xbfU;
    if (byte(1) < least || byte(1) > most) return 0;
    for (std::size_t n = 2; n < length; ++n) {
        if ((byte(n) & 0xc0U) != 0x80U) return 0;
    }
    return length;
}

}  // namespace flashoptim

#endif
