// Checks whether bytes are UTF-8.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

namespace flashoptim::trainer {

/// The offset of the first byte that does not start a well-formed UTF-8 sequence (Unicode 15, table 3-7: no
/// overlong forms, no surrogates, nothing above U+10FFFF). Empty if all of `bytes` is UTF-8.
std::optional<std::size_t> first_invalid_utf8(std::span<const std::byte> bytes);

}  // namespace flashoptim::trainer
