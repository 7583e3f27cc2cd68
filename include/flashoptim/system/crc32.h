// CRC-32 as in zlib, PNG and gzip (reflected polynomial 0xEDB88320), eight bytes at a time.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace flashoptim::checkpoint {

/// A running checksum. The bytes are fed in order, in pieces of any size.
class Crc32 {
public:
    void update(std::span<const std::byte> bytes) {
        std::uint32_t crc = ~value_;
        while (bytes.size() >=
               8) {  // slicing-by-8 (Kounavis and Berry, 2005): table k advances a byte by k further bytes
            const std::uint32_t low = crc ^ load32(bytes);
            const std::uint32_t high = load32(bytes.subspan(4));
            crc = kTables[7][low & 0xFF] ^ kTables[6][(low >> 8) & 0xFF] ^ kTables[5][(low >> 16) & 0xFF] ^
                  kTables[4][low >> 24] ^ kTables[3][high & 0xFF] ^ kTables[2][(high >> 8) & 0xFF] ^
                  kTables[1][(high >> 16) & 0xFF] ^ kTables[0][high >> 24];
            bytes = bytes.subspan(8);
        }
        for (const std::byte byte : bytes) {
            crc = kTables[0][(crc ^ std::to_integer<std::uint32_t>(byte)) & 0xFF] ^ (crc >> 8);
        }
        value_ = ~crc;
    }

    /// The checksum of all bytes so far.
    std::uint32_t value() const { return value_; }

private:
    using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

    static constexpr Tables make_tables() {
        Tables tables{};
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            std::uint32_t crc = byte;
            for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
            tables[0][byte] = crc;
        }
        for (std::size_t k = 1; k < 8; ++k) {
            for (std::size_t byte = 0; byte < 256; ++byte) {
                const std::uint32_t before = tables[k - 1][byte];
                tables[k][byte] = tables[0][before & 0xFF] ^ (before >> 8);
            }
        }
        return tables;
    }

    static std::uint32_t load32(std::span<const std::byte> bytes) {
        return std::to_integer<std::uint32_t>(bytes[0]) | std::to_integer<std::uint32_t>(bytes[1]) << 8 |
               std::to_integer<std::uint32_t>(bytes[2]) << 16 |
               std::to_integer<std::uint32_t>(bytes[3]) << 24;
    }

    static const Tables kTables;
    std::uint32_t value_ = 0;
};

inline constexpr Crc32::Tables Crc32::kTables = Crc32::make_tables();

}  // namespace flashoptim::checkpoint

#endif
