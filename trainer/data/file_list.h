// Which files a data set has, and whether they are text or tokens. Opens none of them.
#pragma once

#include <filesystem>
#include <vector>

namespace flashoptim::trainer {

/// Files of a data set: `path` itself, or every file below it in sorted order, without hidden ones (a name
/// that starts with a dot). Links are followed. Throws IoError that names what is missing, what cannot be
/// read, and what is neither file nor folder (a pipe in a folder, a link that leads nowhere): nothing is left
/// out silently.
std::vector<std::filesystem::path> list_files(const std::filesystem::path& path);

/// Whether `path` is token files: its files have the ending .bin. Throws as list_files() does, and
/// FormatError if a folder has both token files and others, naming one of each.
bool is_token_data(const std::filesystem::path& path);

/// Whether what is made at `place` would be among the files of the folder `data` when it is listed the next
/// time. `place` need not be there. Throws IoError where one of them cannot be looked up.
bool would_be_listed(const std::filesystem::path& data, const std::filesystem::path& place);

}  // namespace flashoptim::trainer
