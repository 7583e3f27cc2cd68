// Natural logarithm and exponential from IEEE double operations only. They give the same bits on host and
// device; the functions of a C library do not. Only the scalars of a step use them.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <cstring>

#include "flashoptim/numeric/compiler.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

// ln 2 in two parts. The first part ends in zeros, so that its products with small integers are exact.
constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;

/// The natural logarithm of a positive normal number, within 3 units in the last place. Uses x = m 2^e with m
/// near 1, and ln m = 2 artanh((m - 1) / (m + 1)).
FLASHOPTIM_INLINE double natural_logarithm(double x) {
    constexpr std::uint64_t kFraction = (1ULL << 52U) - 1, kOne = 1023ULL << 52U;
    std::uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    auto exponent = static_cast<std::int64_t>(bits >> 52U) - 1023;
    bits = (bits & kFraction) | kOne;
    double m = 0.0;
    std::memcpy(&m, &bits, sizeof m);
    if (m > 0x1.6a09e667f3bcdp0) {  // the square root of 2
        m *= 0.5;
        ++exponent;
    }
    const double s = (m - 1.0) / (m + 1.0), square = s * s;
    double series = 0.0;
    for (int n = 27; n >= 3; n -= 2) series = (series + 1.0 / n) * square;
    const double e = static_cast<double>(exponent);
    return e * kLn2High + (2.0 * s + (2.0 * s * series + e * kLn2Low));
}

/// e^x for -700 <= x <= 700, within 2 units in the last place. Uses x = k ln 2 + r and the series of e^r.
FLASHOPTIM_INLINE double exponential(double x) {
    const double scaled = x * 0x1.71547652b82fep0;  // 1 / ln 2
    const auto k = static_cast<std::int64_t>(scaled < 0.0 ? scaled - 0.5 : scaled + 0.5);
    const double r = (x - static_cast<double>(k) * kLn2High) - static_cast<double>(k) * kLn2Low;
    double series = 1.0;
    for (int n = 18; n >= 2; --n) series = 1.0 + series * r / n;
    const auto bits = static_cast<std::uint64_t>(k + 1023) << 52U;
    double power_of_two = 0.0;
    std::memcpy(&power_of_two, &bits, sizeof power_of_two);
    return (1.0 + r * series) * power_of_two;
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
