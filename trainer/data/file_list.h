// Lists the files of a data set and tells text from tokens. Opens none of them.
#pragma once

#include <filesystem>
#include <vector>

namespace flashoptim::trainer {

/// The files of a data set: `path` itself, or every file below it in sorted order, except hidden ones (whose
/// name starts with a dot). Links are followed. Nothing is left out silently: throws an IoError that names
/// anything that is missing, cannot be read, or is neither a file nor a folder (a pipe, a dangling link).
std::vector<std::filesystem::path> list_files(const std::filesystem::path& path);

/// Whether `path` has token files, whose names end in .bin. Throws what list_files() throws, and FormatError
/// if a folder has both token files and others. The message names one of each.
bool is_token_data(const std::filesystem::path& path);

/// Whether a file made at `place` would be listed as a file of the folder `data`. `place` need not exist.
/// Throws IoError if one of the two cannot be looked up.
bool would_be_listed(const std::filesystem::path& data, const std::filesystem::path& place);

}  // namespace flashoptim::trainer
