// Writes, parses and checks the text of checkpoint.json.
#include "manifest.h"

#include <charconv>
#include <cstdio>
#include <optional>

#include "flashoptim/checkpoint.h"
#include "flashoptim/system/message.h"
#include "json_text.h"

namespace flashoptim::checkpoint {
namespace {

constexpr std::string_view kFormatName = "flashoptim-checkpoint";
constexpr int kCrcDigits = 8;

std::string hexadecimal(std::uint32_t value) {
    char text[kCrcDigits + 1];
    std::snprintf(text, sizeof text, "%08x", static_cast<unsigned>(value));
    return text;
}

std::optional<std::uint32_t> parse_hexadecimal(std::string_view text) {
    std::uint32_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    const bool complete =
        text.size() == kCrcDigits && error == std::errc() && end == text.data() + text.size();
    return complete ? std::optional(value) : std::nullopt;
}

void check_format(const JsonValue& document, const std::filesystem::path& file) {
    const JsonValue* format = document.find("format");
    const auto* name = format != nullptr ? format->as<std::string>() : nullptr;
    if (name == nullptr || *name != kFormatName) {
        throw FormatError(path_label(file) + " is not the table of contents of a " +
                          std::string(kFormatName) + "; give a folder that was written as a checkpoint");
    }
    const JsonValue* version = document.find("version");
    const auto* number = version != nullptr ? version->as<std::uint64_t>() : nullptr;
    if (number == nullptr || *number == 0) {
        throw FormatError(path_label(file) + " has no valid \"version\"; use another checkpoint");
    }
    if (*number > Checkpoint::kVersion) {
        throw FormatError(path_label(file) + " has format version " + std::to_string(*number) +
                          " and this build reads up to " + std::to_string(Checkpoint::kVersion) +
                          "; update flashoptim");
    }
}

std::optional<ManifestEntry> parse_entry(const JsonValue& entry) {
    const JsonValue *bytes = entry.find("bytes"), *crc = entry.find("crc32");
    const auto* byte_count = bytes != nullptr ? bytes->as<std::uint64_t>() : nullptr;
    const auto* crc_text = crc != nullptr ? crc->as<std::string>() : nullptr;
    if (byte_count == nullptr || crc_text == nullptr) return std::nullopt;
    const auto crc_value = parse_hexadecimal(*crc_text);
    if (!crc_value) return std::nullopt;
    return ManifestEntry{*byte_count, *crc_value};
}

}  // namespace

std::string format_manifest(const Manifest& manifest) {
    std::string text = "{\n  \"format\": \"" + std::string(kFormatName) +
                       "\",\n  \"version\": " + std::to_string(Checkpoint::kVersion) + ",\n  \"files\": {";
    for (const auto& [name, entry] : manifest) {
        if (text.back() != '{') text += ',';
        text.append("\n    ").append(json_string(name, "file name")).append(": {\n      \"bytes\": ");
        text.append(std::to_string(entry.byte_count)).append(",\n      \"crc32\": \"");
        text.append(hexadecimal(entry.crc32)).append("\"\n    }");
    }
    return text + "\n  }\n}\n";
}

Manifest parse_manifest(std::string_view json, const std::filesystem::path& file) {
    const JsonValue document = parse_json_object(json, path_label(file));
    check_format(document, file);
    const JsonValue* files = document.find("files");
    const auto* members = files != nullptr ? files->as<JsonValue::Object>() : nullptr;
    if (members == nullptr) {
        throw FormatError(path_label(file) + " lists no files; use another checkpoint");
    }
    Manifest manifest;
    for (const auto& [name, value] : *members) {
        const auto entry = parse_entry(value);
        if (!entry || (name != kMetadataName && !is_tensor_file_name(name))) {
            throw FormatError(path_label(file) + " has an invalid entry \"" + printable(name) +
                              "\" in its list of files; use another checkpoint");
        }
        manifest.emplace_hint(manifest.end(), name, *entry);
    }
    if (!manifest.contains(kMetadataName)) {
        throw FormatError(path_label(file) + " does not list " + kMetadataName + "; use another checkpoint");
    }
    return manifest;
}

bool is_tensor_file_name(std::string_view name) {
    return name.size() > kTensorSuffix.size() && name.ends_with(kTensorSuffix) && name.front() != '.' &&
           name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

}  // namespace flashoptim::checkpoint
