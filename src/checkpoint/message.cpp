// How names from files and paths are shown in error messages.
#include "message.h"

#include <algorithm>

namespace flashoptim::checkpoint {
namespace {

constexpr std::size_t kLongestQuote = 200;

std::string without_control_characters(std::string_view text, bool ascii_only) {
    std::string shown(text);
    std::ranges::replace_if(
        shown,
        [ascii_only](char character) {
            const auto code = static_cast<unsigned char>(character);
            return code < 0x20 || code == 0x7F || (ascii_only && code > 0x7F);
        },
        '?');
    return shown;
}

}  // namespace

std::string printable(std::string_view text) {
    return without_control_characters(text.substr(0, kLongestQuote), true) +
           (text.size() > kLongestQuote ? "..." : "");
}

std::string path_label(const std::filesystem::path& path) {
    return std::string("'").append(without_control_characters(path.string(), false)).append("'");
}

std::string tensor_label(std::string_view name) { return "tensor \"" + printable(name) + "\""; }

}  // namespace flashoptim::checkpoint
