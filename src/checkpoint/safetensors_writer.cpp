// Plans and writes safetensors files.
#include "safetensors_writer.h"

#include <algorithm>
#include <bit>
#include <set>

#include "flashoptim/system/message.h"
#include "json_text.h"
#include "safetensors_header.h"
#include "storage_type.h"

namespace flashoptim::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are written as they lie in memory");

void check_tensor(const TensorData& tensor, const std::string& label) {
    if (tensor.name == "__metadata__") {
        throw InvalidArgument(label + " has a name that the format reserves; rename it");
    }
    const auto byte_count = byte_count_of(tensor.dtype, tensor.shape);
    if (!byte_count || *byte_count != tensor.bytes.size()) {
        throw InvalidArgument(
            label + " is given with " + std::to_string(tensor.bytes.size()) + " bytes and " +
            describe(tensor.dtype, tensor.shape) +
            (byte_count ? " needs " + std::to_string(*byte_count) : " is no possible size") +
            "; pass matching shape and bytes");
    }
}

std::string header_entry(const TensorData& tensor, std::uint64_t begin, const std::string& label) {
    std::string entry = json_string(tensor.name, label) + ":{\"dtype\":\"";
    entry.append(storage_type_name(tensor.dtype)).append("\",\"shape\":[").append(join(tensor.shape, ","));
    entry.append("],\"data_offsets\":[").append(std::to_string(begin)).append(",");
    return entry.append(std::to_string(begin + tensor.bytes.size())).append("]}");
}

std::string metadata_entry(const Metadata& metadata, const std::string& label) {
    std::string entry = "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
        if (entry.back() != '{') entry += ',';
        entry += json_string(key, label) + ":" + json_string(value, label);
    }
    return entry + "}";
}

}  // namespace

SafetensorsLayout plan_safetensors(std::span<const TensorData> tensors, const Metadata& metadata,
                                   const std::filesystem::path& file) {
    SafetensorsLayout layout;
    std::set<std::string_view> names;
    for (const TensorData& tensor : tensors) {
        const std::string label = path_label(file) + ": " + tensor_label(tensor.name);
        check_tensor(tensor, label);
        if (!names.insert(tensor.name).second)
            throw InvalidArgument(label + " is given twice; rename one of them");
        layout.tensors.push_back(&tensor);
    }
    // StorageType is ordered by element size. With the largest elements first, every tensor is aligned.
    std::ranges::sort(layout.tensors, [](const TensorData* left, const TensorData* right) {
        return left->dtype != right->dtype ? left->dtype > right->dtype : left->name < right->name;
    });

    std::string header = "{";
    if (!metadata.empty()) header += metadata_entry(metadata, path_label(file) + ": the metadata");
    std::uint64_t data_bytes = 0;
    for (const TensorData* tensor : layout.tensors) {
        if (header.size() > 1) header += ',';
        header += header_entry(*tensor, data_bytes, path_label(file) + ": " + tensor_label(tensor->name));
        data_bytes += tensor->bytes.size();
    }
    header += '}';
    header.append((kLengthBytes - header.size() % kLengthBytes) % kLengthBytes, ' ');
    if (header.size() > kLongestHeader) {
        throw InvalidArgument(path_label(file) + ": the names and metadata take " +
                              std::to_string(header.size()) + " bytes and " + std::to_string(kLongestHeader) +
                              " is the format's limit; spread the tensors over several files");
    }

    for (std::uint64_t i = 0; i < kLengthBytes; ++i) {
        layout.opening += static_cast<char>(header.size() >> (8 * i) & 0xFF);
    }
    layout.opening += header;
    layout.file_bytes = layout.opening.size() + data_bytes;
    return layout;
}

void write_safetensors(OutputFile& file, const SafetensorsLayout& layout) {
    file.write(layout.opening);
    for (const TensorData* tensor : layout.tensors) file.write(tensor->bytes);
}

}  // namespace flashoptim::checkpoint
