// How names from files and paths are shown in error messages: on one line, printable, of bounded length.
// Throws nothing.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace flashoptim::checkpoint {

/// `text` with control characters and bytes beyond ASCII replaced by '?', cut after 200 characters.
std::string printable(std::string_view text);

/// `'path'` on one line (one_line.h), uncut: no byte of a name that somebody has to type is lost.
std::string path_label(const std::filesystem::path& path);

/// `tensor "name"`, printable.
std::string tensor_label(std::string_view name);

}  // namespace flashoptim::checkpoint
