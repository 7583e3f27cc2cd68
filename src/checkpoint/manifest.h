// checkpoint.json, the table of contents of a checkpoint folder. Reads and writes no files.
//
//   {"format": "flashoptim-checkpoint", "version": 1,
//    "files": {"metadata.json": {"bytes": 2, "crc32": "44bbbde8"}, "weights.safetensors": {...}}}
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "flashoptim/checkpoint_folder.h"

namespace flashoptim::checkpoint {

struct ManifestEntry {
    std::uint64_t byte_count = 0;
    std::uint32_t crc32 = 0;
};

/// Every other file of the folder, by its name in the folder.
using Manifest = std::map<std::string, ManifestEntry>;

std::string format_manifest(const Manifest& manifest);

/// Parses checkpoint.json. `file` is its path in messages. Throws FormatError.
Manifest parse_manifest(std::string_view json, const std::filesystem::path& file);

}  // namespace flashoptim::checkpoint
