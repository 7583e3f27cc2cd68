// How text of unknown content (names, paths, messages of libraries) is shown: on one line, and harmless to a
// terminal.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstddef>
#include <string>
#include <string_view>

#include "flashoptim/system/utf8.h"

namespace flashoptim {

/// `text` with everything escaped that would end the line, control a terminal or change the direction of
/// writing: control characters (\n, \t, \x1b), bytes that are not UTF-8 (\xff), and Unicode characters with
/// such effects (\u202e). Nothing is cut. Escaping twice gives the same text as escaping once, so callers
/// need not know whether a part was escaped before.
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
            shown += "\\x";  // the code of a control character beyond ASCII
            hexadecimal(shown, code, 2);
        } else if (code == 0x61cU || code == 0x200eU || code == 0x200fU ||
                   (code >= 0x2028U && code <= 0x202eU) || (code >= 0x2066U && code <= 0x2069U) ||
                   code == 0xfeffU) {
            shown += "\\u";  // direction marks, line and paragraph separators, and the invisible BOM
            hexadecimal(shown, code, 4);
        } else {
            shown += text.substr(0, length);
        }
        text.remove_prefix(length == 0 ? 1 : length);
    }
    return shown;
}

}  // namespace flashoptim

#endif
