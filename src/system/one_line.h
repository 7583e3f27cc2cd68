// How text of unknown content (names, paths, messages of libraries) is shown: on one line, and doing nothing
// to a terminal.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "utf8.h"

namespace flashoptim {

/// `text` with everything escaped that would end its line, drive a terminal or turn the direction of writing:
/// control characters (\n, \t, \x1b), bytes that are no UTF-8 (\xff), and the characters of Unicode that do
/// the like (\u202e). Nothing is cut. What is shown stays as it is when it is shown again, so callers need
/// not know whether a part went through here before.
[[nodiscard]] inline std::string one_line(std::string_view text) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    const auto hexadecimal = [&](std::string& to, unsigned code, int digits) {
        while (digits-- > 0) to.push_back(kDigits[(code >> (4 * digits)) & 0xfU]);
    };
    std::string shown;
    shown.reserve(text.size());
    while (!text.empty()) {
        const std::size_t length = utf8_length(text);
        const auto byte = [&](std::size_t n) { return static_cast<unsigned char>(text[n]); };
        unsigned code = byte(0);
        if (length == 2) code = (code & 0x1fU) << 6U | (byte(1) & 0x3fU);
        if (length == 3) code = (code & 0xfU) << 12U | (byte(1) & 0x3fU) << 6U | (byte(2) & 0x3fU);
        if (code == '\n' || code == '\r' || code == '\t') {
            shown += code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t";
        } else if (length == 0 || code < 0x20U || (code >= 0x7fU && code <= 0x9fU && length <= 2)) {
            shown += "\\x";  // of a control character beyond ASCII, its code
            hexadecimal(shown, code, 2);
        } else if (code == 0x61cU || code == 0x200eU || code == 0x200fU ||
                   (code >= 0x2028U && code <= 0x202eU) || (code >= 0x2066U && code <= 0x2069U) ||
                   code == 0xfeffU) {
            shown += "\\u";  // marks of direction, ends of lines and paragraphs, and one that is not seen
            hexadecimal(shown, code, 4);
        } else {
            shown += text.substr(0, length);
        }
        text.remove_prefix(length == 0 ? 1 : length);
    }
    return shown;
}

}  // namespace flashoptim
