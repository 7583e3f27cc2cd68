// checkpoint.json: its text and its checks.
#include "manifest.h"

#include <charconv>
#include <cstdio>
#include <optional>

#include "flashoptim/checkpoint.h"
#include "json_text.h"
#include "message.h"

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

void check_format(const nlohmann::json& document, const std::filesystem::path& file) {
    const auto format = document.find("format");
    if (format == document.end() || *format != kFormatName) {
        throw FormatError(path_label(file) + " is not the table of contents of a " +
                          std::string(kFormatName) + "; give a folder that was written as a checkpoint");
    }
    const auto version = document.find("version");
    if (version == document.end() || !version->is_number_unsigned() || version->get<std::uint64_t>() == 0) {
        throw FormatError(path_label(file) + " has no valid \"version\"; use another checkpoint");
    }
    if (version->get<std::uint64_t>() > Checkpoint::kVersion) {
        throw FormatError(path_label(file) + " has format version " + version->dump() +
                          " and this build reads up to " + std::to_string(Checkpoint::kVersion) +
                          "; update flashoptim");
    }
}

std::optional<ManifestEntry> parse_entry(const nlohmann::json& entry) {
    if (!entry.is_object()) return std::nullopt;
    const auto bytes = entry.find("bytes");
    const auto crc = entry.find("crc32");
    if (bytes == entry.end() || crc == entry.end() || !bytes->is_number_unsigned() || !crc->is_string()) {
        return std::nullopt;
    }
    const auto crc_value = parse_hexadecimal(crc->get_ref<const std::string&>());
    if (!crc_value) return std::nullopt;
    return ManifestEntry{bytes->get<std::uint64_t>(), *crc_value};
}

}  // namespace

std::string format_manifest(const Manifest& manifest) {
    nlohmann::ordered_json files = nlohmann::ordered_json::object();
    for (const auto& [name, entry] : manifest) {
        files[name] = {{"bytes", entry.byte_count}, {"crc32", hexadecimal(entry.crc32)}};
    }
    const nlohmann::ordered_json document = {
        {"format", kFormatName}, {"version", Checkpoint::kVersion}, {"files", std::move(files)}};
    return document.dump(2) + "\n";
}

Manifest parse_manifest(std::string_view json, const std::filesystem::path& file) {
    const nlohmann::json document = parse_json_object(json, path_label(file));
    check_format(document, file);
    const auto files = document.find("files");
    if (files == document.end() || !files->is_object()) {
        throw FormatError(path_label(file) + " lists no files; use another checkpoint");
    }
    Manifest manifest;
    for (const auto& [name, value] : files->items()) {
        const auto entry = parse_entry(value);
        if (!entry || (name != kMetadataName && !is_tensor_file_name(name))) {
            throw FormatError(path_label(file) + " has an invalid entry \"" + printable(name) +
                              "\" in its list of files; use another checkpoint");
        }
        manifest.emplace(name, *entry);
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
