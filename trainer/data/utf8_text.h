// Whether bytes are UTF-8. Nothing else about text lives here.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

namespace flashoptim::trainer {

/// Offset of the first byte that starts no well-formed UTF-8 sequence (Unicode 15, table 3-7: no overlong
/// forms, no surrogates, nothing beyond U+10FFFF); nothing if all of `bytes` is UTF-8.
std::optional<std::size_t> first_invalid_utf8(std::span<const std::byte> bytes);

}  // namespace flashoptim::trainer
