// The header of a safetensors file, from text to a checked list of tensors.
#include "safetensors_header.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "json_text.h"
#include "message.h"
#include "storage_type.h"

namespace flashoptim::checkpoint {
namespace {

constexpr std::string_view kRemedy = "; write the file again";

// Where in the tensors' part of the file a tensor lies.
struct Range {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
};

const nlohmann::json& field(const nlohmann::json& entry, const char* key, nlohmann::json::value_t type,
                            const std::string& label) {
    const auto found = entry.find(key);
    if (found == entry.end() || found->type() != type) {
        throw FormatError(label + " has no valid \"" + key + "\"" + std::string(kRemedy));
    }
    return *found;
}

// Negative numbers, fractions and what exceeds 64 bits are of other JSON types here.
std::optional<std::uint64_t> unsigned_number(const nlohmann::json& value) {
    return value.is_number_unsigned() ? std::optional(value.get<std::uint64_t>()) : std::nullopt;
}

std::vector<std::int64_t> parse_shape(const nlohmann::json& array, const std::string& label) {
    std::vector<std::int64_t> shape;
    for (const nlohmann::json& element : array) {
        const auto size = unsigned_number(element);
        if (!size || *size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
            throw FormatError(label + " has a dimension that is not a whole number from 0 to 2^63 - 1" +
                              std::string(kRemedy));
        }
        shape.push_back(static_cast<std::int64_t>(*size));
    }
    return shape;
}

Range parse_offsets(const nlohmann::json& array, const std::string& label) {
    const auto begin = array.size() == 2 ? unsigned_number(array[0]) : std::nullopt;
    const auto end = array.size() == 2 ? unsigned_number(array[1]) : std::nullopt;
    if (!begin || !end || *end < *begin) {
        throw FormatError(label + " has data_offsets that are not a begin and an end in whole bytes" +
                          std::string(kRemedy));
    }
    return {*begin, *end};
}

// `offset` is left relative to the tensors' part of the file.
TensorInfo parse_tensor(const std::string& name, const nlohmann::json& entry, const std::string& label) {
    using Type = nlohmann::json::value_t;
    if (!entry.is_object())
        throw FormatError(label + " is not described by a JSON object" + std::string(kRemedy));
    const auto& type_name = field(entry, "dtype", Type::string, label).get_ref<const std::string&>();
    const auto dtype = storage_type_from_name(type_name);
    if (!dtype) {
        throw FormatError(label + " has the unknown dtype \"" + printable(type_name) +
                          "\"; convert it to one of: " + storage_type_names());
    }
    TensorInfo tensor{.name = name,
                      .dtype = *dtype,
                      .shape = parse_shape(field(entry, "shape", Type::array, label), label)};
    const Range range = parse_offsets(field(entry, "data_offsets", Type::array, label), label);
    const auto byte_count = byte_count_of(*dtype, tensor.shape);
    if (!byte_count || *byte_count != range.end - range.begin) {
        throw FormatError(label + " is " + describe(*dtype, tensor.shape) + ", which needs " +
                          (byte_count ? std::to_string(*byte_count) : "more than 2^64") +
                          " bytes, but its data_offsets span " + std::to_string(range.end - range.begin) +
                          std::string(kRemedy));
    }
    tensor.offset = range.begin;
    tensor.byte_count = *byte_count;
    return tensor;
}

Metadata parse_metadata(const nlohmann::json& entry, const std::string& label) {
    if (!entry.is_object())
        throw FormatError(label + " has a __metadata__ that is no object" + std::string(kRemedy));
    Metadata metadata;
    for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) {
            throw FormatError(label + " has the __metadata__ value \"" + printable(key) +
                              "\" that is not text" + std::string(kRemedy));
        }
        metadata.emplace(key, value.get<std::string>());
    }
    return metadata;
}

}  // namespace

SafetensorsHeader parse_header(std::string_view json, const std::filesystem::path& file) {
    const std::string label = path_label(file) + ": the safetensors header";
    const nlohmann::json document = parse_json_object(json, label);
    SafetensorsHeader header;
    for (const auto& [name, entry] : document.items()) {
        if (name == "__metadata__") {
            header.metadata = parse_metadata(entry, label);
        } else {
            header.tensors.push_back(parse_tensor(name, entry, path_label(file) + ": " + tensor_label(name)));
        }
    }

    // An empty tensor stands before the one that begins at the same byte.
    std::ranges::stable_sort(header.tensors, {}, [](const TensorInfo& tensor) {
        return std::pair(tensor.offset, tensor.byte_count);
    });
    std::uint64_t end = 0;
    for (const TensorInfo& tensor : header.tensors) {
        if (tensor.offset != end) {
            throw FormatError(
                path_label(file) + ": " + tensor_label(tensor.name) + " begins at byte " +
                std::to_string(tensor.offset) + " of the data, " +
                (tensor.offset < end ? "inside another tensor, which ends" : "after a hole that begins") +
                " at byte " + std::to_string(end) + std::string(kRemedy));
        }
        end += tensor.byte_count;  // equals the tensor's own end offset, so it cannot leave 64 bits
    }

    const std::uint64_t data_begin = kLengthBytes + json.size();
    if (__builtin_add_overflow(data_begin, end, &header.file_bytes)) {
        throw FormatError(label + " describes more than 2^64 bytes" + std::string(kRemedy));
    }
    for (TensorInfo& tensor : header.tensors) tensor.offset += data_begin;
    return header;
}

}  // namespace flashoptim::checkpoint
