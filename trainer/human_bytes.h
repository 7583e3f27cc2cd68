// Numbers of bytes in a form for people.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>

namespace flashoptim {

/// "1.2 GiB", "340.0 KiB", "17 B".
inline std::string human_bytes(std::int64_t bytes) {
    constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    auto value = static_cast<double>(bytes);
    std::size_t unit = 0;
    while (value >= 1024.0 && unit + 1 < kUnits.size()) {
        value /= 1024.0;
        ++unit;
    }
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
    return text.data();
}

}  // namespace flashoptim
