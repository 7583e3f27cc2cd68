// Element types of files: what the reader and the writer need beyond the public functions. No file access
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

/// The names of all types, separated by spaces, for error messages.
std::string storage_type_names();

/// The bytes of a tensor. Empty if a dimension is negative or the product exceeds 64 bits.
std::optional<std::uint64_t> byte_count_of(StorageType type, std::span<const std::int64_t> shape);

/// The dimensions as text, with `separator` between them.
std::string join(std::span<const std::int64_t> shape, std::string_view separator);

/// The shape as "[2, 3]". Only the first dimensions are shown if there are very many.
std::string describe(std::span<const std::int64_t> shape);

/// The type and the shape as "F32 [2, 3]".
std::string describe(StorageType type, std::span<const std::int64_t> shape);

}  // namespace flashoptim::checkpoint
