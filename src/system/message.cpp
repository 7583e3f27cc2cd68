// How names from files and paths are shown in error messages.
#include "flashoptim/system/message.h"

#include <algorithm>

#include "flashoptim/system/one_line.h"

namespace flashoptim::checkpoint {
namespace {

constexpr std::size_t kLongestQuote = 200;

}  // namespace

std::string printable(std::string_view text) {
    std::string shown(text.substr(0, kLongestQuote));
    std::ranges::replace_if(
        shown,
        [](char character) {
            const auto code = static_cast<unsigned char>(character);
            return code < 0x20 || code >= 0x7F;
        },
        '?');
    return shown + (text.size() > kLongestQuote ? "..." : "");
}

std::string path_label(const std::filesystem::path& path) {
    return std::string("'").append(one_line(path.native())).append("'");
}

std::string tensor_label(std::string_view name) { return "tensor \"" + printable(name) + "\""; }

}  // namespace flashoptim::checkpoint
