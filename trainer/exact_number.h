// Numbers as people type them, read exactly: what is not wholly a number, or does not fit, is nothing. Knows
// no bounds.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>

namespace flashoptim::trainer {

/// Decimal digits alone: no sign, space, exponent, point, separator or prefix. Nothing where 64 bits do not
/// hold the number.
inline std::optional<std::uint64_t> exact_whole_number(std::string_view text) {
    std::uint64_t number = 0;
    const char* const end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, number);
    if (text.empty() || read.ec != std::errc() || read.ptr != end) return std::nullopt;
    return number;
}

/// A finite decimal number as "0.1", "-3", ".5" or "1e-3", whatever the locale. Nothing for "nan" and "inf",
/// and where a double would only hold 0 or infinity in its place.
inline std::optional<double> exact_real_number(std::string_view text) {
    double number = 0.0;
    const char* const end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, number);
    if (text.empty() || read.ec != std::errc() || read.ptr != end || !std::isfinite(number)) {
        return std::nullopt;
    }
    return number;
}

}  // namespace flashoptim::trainer
