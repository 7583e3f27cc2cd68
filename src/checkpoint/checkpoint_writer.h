// Writing a checkpoint folder, with the choice of how it takes its place: the public function leaves that to
// the file system.
#pragma once

#include "flashoptim/checkpoint.h"
#include "system/atomic_path.h"

namespace flashoptim::checkpoint {

/// As flashoptim::checkpoint::write.
std::uint64_t write_checkpoint(const std::filesystem::path& folder, std::string_view metadata_json,
                               std::span<const TensorFile> files, Replace how);

/// Throws the IoError with which `remove` would refuse the folder: it holds something that is not the
/// checkpoint's. Changes nothing.
void check_removable(const std::filesystem::path& folder);

}  // namespace flashoptim::checkpoint
