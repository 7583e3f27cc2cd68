// The table of element types: their names in files and their sizes.
#include "storage_type.h"

#include <algorithm>
#include <array>
#include <string>

namespace flashoptim::checkpoint {
namespace {

struct Row {
    StorageType type;
    std::string_view name;
    std::size_t size;
};

constexpr std::array kRows{
    Row{StorageType::kBool, "BOOL", 1},     Row{StorageType::kUInt8, "U8", 1},
    Row{StorageType::kInt8, "I8", 1},       Row{StorageType::kInt16, "I16", 2},
    Row{StorageType::kUInt16, "U16", 2},    Row{StorageType::kFloat16, "F16", 2},
    Row{StorageType::kBFloat16, "BF16", 2}, Row{StorageType::kInt32, "I32", 4},
    Row{StorageType::kUInt32, "U32", 4},    Row{StorageType::kFloat32, "F32", 4},
    Row{StorageType::kFloat64, "F64", 8},   Row{StorageType::kInt64, "I64", 8},
    Row{StorageType::kUInt64, "U64", 8},
};

const Row& row_of(StorageType type) {
    const auto row = std::ranges::find(kRows, type, &Row::type);
    if (row == kRows.end()) {
        throw InvalidArgument("storage type " + std::to_string(static_cast<int>(type)) +
                              " does not exist; pass one of the StorageType values");
    }
    return *row;
}

}  // namespace

std::size_t element_size(StorageType type) { return row_of(type).size; }

std::string_view storage_type_name(StorageType type) { return row_of(type).name; }

std::optional<StorageType> storage_type_from_name(std::string_view name) {
    const auto row = std::ranges::find(kRows, name, &Row::name);
    return row == kRows.end() ? std::nullopt : std::optional(row->type);
}

std::string storage_type_names() {
    std::string names;
    for (const Row& row : kRows) names.append(names.empty() ? "" : " ").append(row.name);
    return names;
}

std::optional<std::uint64_t> byte_count_of(StorageType type, std::span<const std::int64_t> shape) {
    std::uint64_t count = element_size(type);
    for (const std::int64_t size : shape) {
        if (size < 0 || __builtin_mul_overflow(count, static_cast<std::uint64_t>(size), &count))
            return std::nullopt;
    }
    return count;
}

std::string join(std::span<const std::int64_t> shape, std::string_view separator) {
    std::string text;
    for (const std::int64_t size : shape)
        text.append(text.empty() ? "" : separator).append(std::to_string(size));
    return text;
}

std::string describe(std::span<const std::int64_t> shape) {
    constexpr std::size_t kMostShown = 16;
    const auto shown = shape.first(std::min(shape.size(), kMostShown));
    return std::string("[").append(join(shown, ", ")).append(shown.size() < shape.size() ? ", ...]" : "]");
}

std::string describe(StorageType type, std::span<const std::int64_t> shape) {
    return std::string(storage_type_name(type)).append(" ").append(describe(shape));
}

}  // namespace flashoptim::checkpoint
