// The header of a safetensors file, from text to a checked list of tensors.
#include "safetensors_header.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "flashoptim/system/message.h"
#include "json_text.h"
#include "storage_type.h"

namespace flashoptim::checkpoint {
namespace {

constexpr std::string_view kRemedy = "; write the file again";

// The bytes of a tensor, counted from the end of the header.
struct Range {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
};

// JsonValue holds negative numbers, fractions and numbers above 64 bits as other types.
std::optional<std::uint64_t> unsigned_number(const JsonValue& value) {
    const auto* number = value.as<std::uint64_t>();
    return number != nullptr ? std::optional(*number) : std::nullopt;
}

// The header's entry for one tensor. Messages name the tensor; they are built only when they are thrown.
class TensorEntry {
public:
    TensorEntry(const std::filesystem::path& file, const std::string& name, const JsonValue& entry)
        : file_(file), name_(name), entry_(entry) {
        if (entry.as<JsonValue::Object>() == nullptr) fail(" is not described by a JSON object");
    }

    // `offset` is counted from the end of the header.
    TensorInfo parse() const {
        const StorageType dtype = parse_dtype();
        TensorInfo tensor{.name = name_, .dtype = dtype, .shape = parse_shape()};
        const Range range = parse_offsets();
        const auto byte_count = byte_count_of(dtype, tensor.shape);
        if (!byte_count || *byte_count != range.end - range.begin) {
            fail(" is " + describe(dtype, tensor.shape) + ", which needs " +
                 (byte_count ? std::to_string(*byte_count) : "more than 2^64") +
                 " bytes, but its data_offsets span " + std::to_string(range.end - range.begin));
        }
        tensor.offset = range.begin;
        tensor.byte_count = *byte_count;
        return tensor;
    }

private:
    [[noreturn]] void fail(const std::string& what, std::string_view remedy = kRemedy) const {
        throw FormatError(path_label(file_) + ": " + tensor_label(name_) + what + std::string(remedy));
    }

    template <class T>
    const T& field(const char* key) const {
        const JsonValue* found = entry_.find(key);
        const T* value = found != nullptr ? found->as<T>() : nullptr;
        if (value == nullptr) fail(std::string(" has no valid \"") + key + "\"");
        return *value;
    }

    StorageType parse_dtype() const {
        const auto& name = field<std::string>("dtype");
        const auto dtype = storage_type_from_name(name);
        if (!dtype) {
            fail(" has the unknown dtype \"" + printable(name) + "\"",
                 "; convert it to one of: " + storage_type_names());
        }
        return *dtype;
    }

    std::vector<std::int64_t> parse_shape() const {
        const auto& extents = field<JsonValue::List>("shape");
        std::vector<std::int64_t> shape;
        shape.reserve(extents.size());
        for (const JsonValue& extent : extents) {
            const auto size = unsigned_number(extent);
            if (!size || *size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
                fail(" has a dimension that is not a whole number from 0 to 2^63 - 1");
            }
            shape.push_back(static_cast<std::int64_t>(*size));
        }
        return shape;
    }

    Range parse_offsets() const {
        const auto& offsets = field<JsonValue::List>("data_offsets");
        const auto begin = offsets.size() == 2 ? unsigned_number(offsets[0]) : std::nullopt;
        const auto end = offsets.size() == 2 ? unsigned_number(offsets[1]) : std::nullopt;
        if (!begin || !end || *end < *begin) {
            fail(" has data_offsets that are not a begin and an end in whole bytes");
        }
        return {*begin, *end};
    }

    const std::filesystem::path& file_;
    const std::string& name_;
    const JsonValue& entry_;
};

Metadata parse_metadata(JsonValue&& entry, const std::string& label) {
    auto* members = entry.as<JsonValue::Object>();
    if (members == nullptr)
        throw FormatError(label + " has a __metadata__ that is no object" + std::string(kRemedy));
    Metadata metadata;
    for (auto& [key, value] : *members) {
        auto* text = value.as<std::string>();
        if (text == nullptr) {
            throw FormatError(label + " has the __metadata__ value \"" + printable(key) +
                              "\" that is not text" + std::string(kRemedy));
        }
        metadata.emplace_hint(metadata.end(), std::move(key), std::move(*text));
    }
    return metadata;
}

}  // namespace

SafetensorsHeader parse_header(std::string_view json, const std::filesystem::path& file) {
    const std::string label = path_label(file) + ": the safetensors header";
    SafetensorsHeader header;
    read_json_object(json, label, [&](const std::string& name, JsonValue&& entry) {
        if (name == "__metadata__") {
            header.metadata = parse_metadata(std::move(entry), label);
        } else {
            header.tensors.push_back(TensorEntry(file, name, entry).parse());
        }
    });

    // An empty tensor comes before the tensor that begins at the same byte.
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
        end += tensor.byte_count;  // equals the tensor's own end offset, so it cannot overflow
    }

    const std::uint64_t data_begin = kLengthBytes + json.size();
    if (__builtin_add_overflow(data_begin, end, &header.file_bytes)) {
        throw FormatError(label + " describes more than 2^64 bytes" + std::string(kRemedy));
    }
    for (TensorInfo& tensor : header.tensors) tensor.offset += data_begin;

    header.by_name.resize(header.tensors.size());
    std::iota(header.by_name.begin(), header.by_name.end(), std::size_t{0});
    std::ranges::sort(header.by_name, {},
                      [&header](std::size_t i) -> const std::string& { return header.tensors[i].name; });
    return header;
}

}  // namespace flashoptim::checkpoint
