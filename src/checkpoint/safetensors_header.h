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

/// The longest header that the reference reader of the format accepts.
inline constexpr std::uint64_t kLongestHeader = 100'000'000;

struct SafetensorsHeader {
    Metadata metadata;
    std::vector<TensorInfo> tensors;   // in file order, without holes; offsets from the start of the file
    std::vector<std::size_t> by_name;  // indices into `tensors`, sorted by name
    std::uint64_t file_bytes = 0;      // the length that the whole file must have
};

/// Parses the header and checks everything that does not need the tensors' bytes. `file` is its path in
/// messages. Throws FormatError.
SafetensorsHeader parse_header(std::string_view json, const std::filesystem::path& file);

}  // namespace flashoptim::checkpoint
