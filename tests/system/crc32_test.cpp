// The checksum is the CRC-32 of zlib: other tools can check our files, and files of
// other builds stay readable.
#include "flashoptim/system/crc32.h"

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

namespace flashoptim::checkpoint {
namespace {

std::uint32_t crc_of(std::string_view text) {
    Crc32 crc;
    crc.update(std::as_bytes(std::span(text)));
    return crc.value();
}

// Bit by bit, from the definition.
std::uint32_t slow_crc(std::span<const std::byte> bytes) {
    std::uint32_t crc = 0xFFFFFFFFU;
    for (const std::byte byte : bytes) {
        crc ^= std::to_integer<std::uint32_t>(byte);
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
    }
    return ~crc;
}

// The check value of the catalogue of CRC algorithms, and zlib's of the empty message.
TEST(Crc32, HasThePublishedCheckValue) {
    EXPECT_EQ(crc_of("123456789"), 0xCBF43926U);
    EXPECT_EQ(crc_of(""), 0U);
}

TEST(Crc32, IsTheDefinitionForAnyLengthAndAnyCut) {
    std::vector<std::byte> bytes(100);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 + 11);
    for (std::size_t length = 0; length <= bytes.size(); ++length) {
        const auto message = std::span(bytes).first(length);
        for (std::size_t cut = 0; cut <= length; cut += 7) {
            Crc32 crc;
            crc.update(message.first(cut));
            crc.update(message.subspan(cut));
            ASSERT_EQ(crc.value(), slow_crc(message)) << length << " bytes cut at " << cut;
        }
    }
}

}  // namespace
}  // namespace flashoptim::checkpoint
