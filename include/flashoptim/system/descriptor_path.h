// Recognises paths that are another name of an open descriptor. Opens nothing.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <filesystem>
#include <optional>

namespace flashoptim::checkpoint {

/// The descriptor of this process that `path` names (/dev/stdout, /dev/fd/3), or nothing. The open file
/// belongs to the code that opened it, and data may have been written to it before.
std::optional<int> descriptor_named(const std::filesystem::path& path);

}  // namespace flashoptim::checkpoint

#endif
