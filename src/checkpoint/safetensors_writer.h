// Plans the layout of a safetensors file and writes it to an open file. Knows neither the folder nor the name
// of that file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "flashoptim/checkpoint.h"
#include "flashoptim/system/file_io.h"

namespace flashoptim::checkpoint {

/// A file that is about to be written: its first bytes (length and header), then the tensors in file order.
struct SafetensorsLayout {
    std::string opening;
    std::vector<const TensorData*> tensors;
    std::uint64_t file_bytes = 0;
};

/// Plans the file. `file` is its path in messages. The layout borrows `tensors`. Throws InvalidArgument.
SafetensorsLayout plan_safetensors(std::span<const TensorData> tensors, const Metadata& metadata,
                                   const std::filesystem::path& file);

void write_safetensors(OutputFile& file, const SafetensorsLayout& layout);

}  // namespace flashoptim::checkpoint
