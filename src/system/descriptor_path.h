// Paths that are another name of an open descriptor. Opens nothing.
#pragma once

#include <filesystem>
#include <optional>

namespace flashoptim::checkpoint {

/// The descriptor of this process that `path` is another name of (/dev/stdout, /dev/fd/3). What is open there
/// belongs to whoever opened it, and may be a file that was written to before.
std::optional<int> descriptor_named(const std::filesystem::path& path);

}  // namespace flashoptim::checkpoint
