// How error messages show names from files, and paths: on one line and printable; names are cut.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <filesystem>
#include <string>
#include <string_view>

namespace flashoptim::checkpoint {

/// `text` with control characters and bytes beyond ASCII replaced by '?', cut after 200 characters.
std::string printable(std::string_view text);

/// `'path'` on one line (one_line.h). It is not cut, because a user may have to type it.
std::string path_label(const std::filesystem::path& path);

/// `tensor "name"`, printable.
std::string tensor_label(std::string_view name);

}  // namespace flashoptim::checkpoint

#endif
