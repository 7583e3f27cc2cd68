// Writes a checkpoint folder. The caller chooses how the new folder replaces the old one; the public function
// lets the file system choose.
#pragma once

#include "flashoptim/checkpoint.h"
#include "flashoptim/system/atomic_path.h"

namespace flashoptim::checkpoint {

/// Does what flashoptim::checkpoint::write does.
std::uint64_t write_checkpoint(const std::filesystem::path& folder, std::string_view metadata_json,
                               std::span<const TensorFile> files, Replace how);

}  // namespace flashoptim::checkpoint
