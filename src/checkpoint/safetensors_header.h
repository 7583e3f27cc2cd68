// The header of a safetensors file, from text to a checked list of tensors. Reads no files.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashoptim/checkpoint.h"

namespace flashoptim::checkpoint {

/// A file starts with the header's length: 8 bytes, little-endian.
inline constexpr std::uint64_t kLengthBytes = 8;

/// Longest header that the format's own reader accepts.
inline constexpr std::uint64_t kLongestHeader = 100'000'000;

struct SafetensorsHeader {
    Metadata metadata;
    std::vector<TensorInfo>
        tensors;  // in the order in which they lie, without holes; offsets from the start of the file
    std::vector<std::size_t> by_name;  // places in `tensors`, sorted by their names
    std::uint64_t file_bytes = 0;      // length that the whole file must have
};

/// Checks everything that can be checked without the tensors' bytes. `file` is for messages. Throws
/// FormatError.
SafetensorsHeader parse_header(std::string_view json, const std::filesystem::path& file);

}  // namespace flashoptim::checkpoint
