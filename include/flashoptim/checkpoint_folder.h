// What lies in a checkpoint folder: the names of its files, for programs that keep checkpoints among files of
// their own. checkpoint.h writes, reads and removes the folder.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <filesystem>
#include <string_view>

namespace flashoptim::checkpoint {

/// The table of contents. It is written last and names all other files.
inline constexpr const char* kManifestName = "checkpoint.json";
/// The JSON document that write() was given.
inline constexpr const char* kMetadataName = "metadata.json";
/// The end of the name of every tensor file.
inline constexpr std::string_view kTensorSuffix = ".safetensors";

/// Whether `name` is a plain file name (no folder in it), and whether it is the name of a tensor file.
/// Thread-safe.
bool is_tensor_file_name(std::string_view name);

/// Checks that remove() would find nothing in the folder but the files of a checkpoint. Changes nothing.
/// Thread-safe.
/// @throws IoError if the folder is empty, holds a file that does not belong to the checkpoint, or cannot be
///         read, and names the remedy.
void check_removable(const std::filesystem::path& folder);

}  // namespace flashoptim::checkpoint

#endif
