// Opens safetensors files and reads tensors out of them.
#include <algorithm>
#include <array>

#include "flashoptim/system/message.h"
#include "safetensors_file.h"
#include "safetensors_header.h"
#include "storage_type.h"

namespace flashoptim::checkpoint {
namespace {

std::string truncated(const std::filesystem::path& file, std::uint64_t expected, std::uint64_t found) {
    return path_label(file) + " is truncated: it needs " + std::to_string(expected) + " bytes and has " +
           std::to_string(found) + "; copy or write it again";
}

std::string read_header_text(const InputFile& file) {
    if (file.byte_count() < kLengthBytes) {
        throw FormatError(truncated(file.shown(), kLengthBytes, file.byte_count()));
    }
    std::array<std::byte, kLengthBytes> bytes{};
    file.read(0, bytes);
    std::uint64_t length = 0;
    for (std::size_t i = kLengthBytes; i-- > 0;)
        length = length << 8 | std::to_integer<std::uint64_t>(bytes[i]);
    if (length > kLongestHeader) {
        throw FormatError(path_label(file.shown()) +
                          " is not a safetensors file: its first 8 bytes announce a header of " +
                          std::to_string(length) + " bytes and " + std::to_string(kLongestHeader) +
                          " is the limit; check that this is the right file");
    }
    if (length > file.byte_count() - kLengthBytes) {
        throw FormatError(truncated(file.shown(), kLengthBytes + length, file.byte_count()));
    }
    std::string text(static_cast<std::size_t>(length), '\0');
    file.read(kLengthBytes, std::as_writable_bytes(std::span(text)));
    return text;
}

}  // namespace

SafetensorsFile::State::State(std::shared_ptr<const InputFile> opened)
    : file(std::move(opened)), header(parse_header(read_header_text(*file), file->shown())) {
    if (file->byte_count() < header.file_bytes) {
        throw FormatError(truncated(file->shown(), header.file_bytes, file->byte_count()));
    }
    if (file->byte_count() > header.file_bytes) {
        throw FormatError(path_label(file->shown()) + " has " + std::to_string(file->byte_count()) +
                          " bytes and its header " + "describes " + std::to_string(header.file_bytes) +
                          "; write the file again");
    }
}

SafetensorsFile::SafetensorsFile(std::shared_ptr<const State> state) : state_(std::move(state)) {}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& file) {
    return SafetensorsFile(std::make_shared<const State>(std::make_shared<const InputFile>(file)));
}

const std::filesystem::path& SafetensorsFile::path() const { return state_->file->shown(); }

const Metadata& SafetensorsFile::metadata() const { return state_->header.metadata; }

std::uint64_t SafetensorsFile::byte_count() const { return state_->file->byte_count(); }

std::span<const TensorInfo> SafetensorsFile::tensors() const { return state_->header.tensors; }

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
    const SafetensorsHeader& header = state_->header;
    const auto found = std::ranges::lower_bound(
        header.by_name, name, {},
        [&header](std::size_t i) -> std::string_view { return header.tensors[i].name; });
    return found != header.by_name.end() && header.tensors[*found].name == name ? &header.tensors[*found]
                                                                                : nullptr;
}

const TensorInfo& SafetensorsFile::tensor(std::string_view name) const {
    const TensorInfo* found = find(name);
    if (found == nullptr) {
        throw FormatError(path_label(path()) + " has no " + tensor_label(name) +
                          "; check that it belongs to this model");
    }
    return *found;
}

const TensorInfo& SafetensorsFile::tensor(std::string_view name, StorageType dtype,
                                          std::span<const std::int64_t> shape) const {
    const TensorInfo& found = tensor(name);
    if (found.dtype != dtype || !std::ranges::equal(found.shape, shape)) {
        throw FormatError(path_label(path()) + ": " + tensor_label(name) + " is " +
                          describe(found.dtype, found.shape) + " and must be " + describe(dtype, shape) +
                          "; check that it belongs to this model");
    }
    return found;
}

void SafetensorsFile::read(const TensorInfo& tensor, std::span<std::byte> out) const {
    if (out.size() != tensor.byte_count) {
        throw InvalidArgument(path_label(path()) + ": " + tensor_label(tensor.name) + " has " +
                              std::to_string(tensor.byte_count) +
                              " bytes; pass memory of that size, not of " + std::to_string(out.size()));
    }
    state_->file->read(tensor.offset, out);
}

std::vector<std::byte> SafetensorsFile::read(const TensorInfo& tensor) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.byte_count));
    read(tensor, bytes);
    return bytes;
}

}  // namespace flashoptim::checkpoint
