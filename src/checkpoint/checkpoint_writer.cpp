// Writes checkpoint folders.
#include "checkpoint_writer.h"

#include <map>
#include <system_error>

#include "json_text.h"
#include "manifest.h"
#include "message.h"
#include "safetensors_writer.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kManifestAllowance =
    4096;  // bytes counted for checkpoint.json before it can be written

using Layouts = std::map<std::string, SafetensorsLayout>;  // by file name

void check_metadata(std::string_view json, const std::string& label) {
    try {
        parse_json_object(json, label);
    } catch (const FormatError& error) {
        throw InvalidArgument(error.what());
    }
}

Layouts plan_files(const fs::path& folder, std::span<const TensorFile> files) {
    Layouts layouts;
    for (const TensorFile& file : files) {
        const std::string name = file.name + std::string(kTensorSuffix);
        const std::string label = path_label(folder) + ": tensor file \"" + printable(file.name) + "\"";
        json_string(file.name, label);
        if (!is_tensor_file_name(name)) {
            throw InvalidArgument(label + " cannot be a file name; use a word such as weights");
        }
        if (!layouts.emplace(name, plan_safetensors(file.tensors, file.metadata, folder / name)).second) {
            throw InvalidArgument(label + " is given twice; rename one of them");
        }
    }
    return layouts;
}

// Replacing deletes what was there, so nothing may be there that a checkpoint does not own.
void check_replaceable(const fs::path& folder, const fs::path& shown) {
    std::error_code error;
    if (!fs::exists(fs::symlink_status(folder, error))) return;
    if (!fs::is_directory(folder, error)) {
        throw IoError("cannot write the checkpoint " + path_label(shown) +
                      ": a file has that name; choose another name");
    }
    const fs::directory_iterator entries(folder, error);
    if (error) throw_io_error("replace", shown, error.value());
    if (entries == fs::directory_iterator()) return;

    Manifest owned;
    try {
        owned = parse_manifest(InputFile(folder / kManifestName).read_all(), folder / kManifestName);
    } catch (const Error&) {
        throw IoError(
            "cannot write the checkpoint " + path_label(shown) +
            ": the folder holds other things and no readable checkpoint; choose another folder or empty it");
    }
    for (const fs::directory_entry& entry : entries) {
        const std::string name = entry.path().filename().string();
        if (name != kManifestName && !owned.contains(name)) {
            throw IoError("cannot replace the checkpoint " + path_label(shown) + ": it holds " +
                          path_label(name) +
                          ", which is not part of it and would be lost; move that elsewhere");
        }
    }
}

ManifestEntry finish(OutputFile& file) {
    file.sync();
    return {file.byte_count(), file.crc32()};
}

std::uint64_t write_contents(TemporaryFolder& folder, std::string_view metadata_json,
                             const Layouts& layouts) {
    Manifest manifest;
    for (const auto& [name, layout] : layouts) {
        OutputFile file = folder.create(name);
        write_safetensors(file, layout);
        manifest[name] = finish(file);
    }
    OutputFile metadata = folder.create(kMetadataName);
    metadata.write(metadata_json);
    manifest[kMetadataName] = finish(metadata);

    OutputFile table = folder.create(kManifestName);
    table.write(format_manifest(manifest));
    std::uint64_t byte_count = finish(table).byte_count;
    for (const auto& [name, entry] : manifest) byte_count += entry.byte_count;
    return byte_count;
}

}  // namespace

std::uint64_t write_checkpoint(const fs::path& folder, std::string_view metadata_json,
                               std::span<const TensorFile> files, Replace how) {
    check_metadata(metadata_json, path_label(folder) + ": the metadata");
    const Layouts layouts = plan_files(folder, files);
    std::uint64_t needed_bytes = kManifestAllowance + metadata_json.size();
    for (const auto& [name, layout] : layouts) needed_bytes += layout.file_bytes;
    try {
        const fs::path target = prepare_target(folder);
        recover_target(target);
        check_replaceable(target, folder);
        TemporaryFolder temporary(target);
        const std::uint64_t byte_count = write_contents(temporary, metadata_json, layouts);
        temporary.replace_target(how);
        return byte_count;
    } catch (const NoSpaceError&) {
        throw_no_space(folder, needed_bytes);
    }
}

std::uint64_t write(const fs::path& folder, std::string_view metadata_json,
                    std::span<const TensorFile> files) {
    return write_checkpoint(folder, metadata_json, files, Replace::kSwapIfPossible);
}

bool recover(const fs::path& folder) {
    std::error_code error;
    const fs::path target = real_path(folder, error);
    return !error && recover_target(target);
}

}  // namespace flashoptim::checkpoint
