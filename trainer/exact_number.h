// Parses numbers that people type, exactly. Text that is not entirely a number, or a number that does not
// fit, gives an empty result. Knows no bounds.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>

namespace flashoptim::trainer {

/// Parses decimal digits only: no sign, space, exponent, point, separator or prefix. Empty if the number does
/// not fit in 64 bits.
inline std::optional<std::uint64_t> exact_whole_number(std::string_view text) {
    std::uint64_t number = 0;
    const char* const end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, number);
    if (text.empty() || read.ec != std::errc() || read.ptr != end) return std::nullopt;
    return number;
}

/// Parses a finite decimal number such as "0.1", "-3", ".5" or "1e-3", independent of the locale. Empty for
/// "nan" and "inf", and for a number that a double would round to 0 or infinity.
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
