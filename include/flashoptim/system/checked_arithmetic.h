// Arithmetic on numbers from a caller or a file. The result is empty if it does not fit.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <optional>
#include <span>
#include <utility>

namespace flashoptim {

template <class T>
[[nodiscard]] constexpr std::optional<T> checked_add(T a, T b) {
    T sum{};
    if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
    return sum;
}
template <class T>
[[nodiscard]] constexpr std::optional<T> checked_subtract(T a, T b) {
    T difference{};
    if (__builtin_sub_overflow(a, b, &difference)) return std::nullopt;
    return difference;
}
template <class T>
[[nodiscard]] constexpr std::optional<T> checked_multiply(T a, T b) {
    T product{};
    if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
    return product;
}
/// The number as another integer type.
template <class To, class From>
[[nodiscard]] constexpr std::optional<To> checked_cast(From from) {
    if (!std::in_range<To>(from)) return std::nullopt;
    return static_cast<To>(from);
}

/// The number of elements of a tensor of this shape. Empty for a negative extent, or if the product of the
/// extents other than 0 does not fit, because strides would not fit either.
[[nodiscard]] constexpr std::optional<std::int64_t> checked_numel(std::span<const std::int64_t> shape) {
    std::int64_t product = 1;
    bool is_empty = false;
    for (const auto extent : shape) {
        if (extent < 0) return std::nullopt;
        is_empty = is_empty || extent == 0;
        if (extent != 0 && __builtin_mul_overflow(product, extent, &product)) return std::nullopt;
    }
    return is_empty ? 0 : product;
}

}  // namespace flashoptim

#endif
