// Guesses the width and byte order of raw token files from their bytes. Knows no vocabulary and opens no
// file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>

namespace flashoptim::trainer {

/// Counts of the bytes of a file, or of samples of it, from which the layout of its tokens is guessed.
class RawLayout {
public:
    /// Counts `bytes`, whose offset in the file is a multiple of 8.
    void add(std::span<const std::byte> bytes);

    /// What the file seems to be and the remedy, as in "has 32-bit tokens; give --token-width 32", if its
    /// bytes are not little-endian tokens of `token_bytes` (2 or 4). Empty if they may be. If the user gave
    /// the width, a file that only looks like something else is accepted.
    std::optional<std::string> contradiction(std::int64_t token_bytes, bool width_given) const;

private:
    using Histogram = std::array<std::uint64_t, 256>;

    // Whether all bytes at these places modulo `period`, a divisor of 8, are below `limit`.
    bool below(std::size_t limit, std::size_t period, std::initializer_list<std::size_t> places) const;
    // How many values the bytes at such places have.
    int different(std::size_t place, std::size_t period) const;
    bool is_text() const;

    std::array<Histogram, 8> by_place_{};  // of the bytes at each place modulo 8
    std::int64_t count_ = 0;               // bytes seen
};

}  // namespace flashoptim::trainer
