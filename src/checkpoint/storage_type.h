// Element types of files: what the reader and the writer ask beyond the public functions. No file access
// here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "flashoptim/checkpoint.h"

namespace flashoptim::checkpoint {

std::optional<StorageType> storage_type_from_name(std::string_view name);

/// All names, separated by spaces, for error messages.
std::string storage_type_names();

/// Bytes of a tensor; nothing if a dimension is negative or the product leaves 64 bits.
std::optional<std::uint64_t> byte_count_of(StorageType type, std::span<const std::int64_t> shape);

/// The dimensions with `separator` between them.
std::string join(std::span<const std::int64_t> shape, std::string_view separator);

/// "[2, 3]", and no more than the first dimensions where a file has thousands of them.
std::string describe(std::span<const std::int64_t> shape);

/// "F32 [2, 3]"
std::string describe(StorageType type, std::span<const std::int64_t> shape);

}  // namespace flashoptim::checkpoint
