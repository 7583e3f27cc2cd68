// Plans a safetensors file and writes it into an open one. Where that file lies and how it gets its name is
// not known here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "flashoptim/checkpoint.h"
#include "system/file_io.h"

namespace flashoptim::checkpoint {

/// A file about to be written: the length and header that open it, and the tensors in the order in which they
/// follow.
struct SafetensorsLayout {
    std::string opening;
    std::vector<const TensorData*> tensors;
    std::uint64_t file_bytes = 0;
};

/// `file` is for messages. The layout borrows `tensors`. Throws InvalidArgument.
SafetensorsLayout plan_safetensors(std::span<const TensorData> tensors, const Metadata& metadata,
                                   const std::filesystem::path& file);

void write_safetensors(OutputFile& file, const SafetensorsLayout& layout);

}  // namespace flashoptim::checkpoint
