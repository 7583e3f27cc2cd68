// Writes checkpoint folders.
#include "checkpoint_writer.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <system_error>
#include <vector>

#include "flashoptim/checkpoint_folder.h"
#include "flashoptim/system/message.h"
#include "json_text.h"
#include "manifest.h"
#include "safetensors_writer.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kManifestAllowance =
    4096;  // the space reserved for checkpoint.json, whose length is not known yet

using Layouts = std::map<std::string, SafetensorsLayout>;  // by file name

void check_metadata(std::string_view json, const std::string& label) {
    if (json.size() > kLongestText) {
        throw InvalidArgument(label + " has " + std::to_string(json.size()) + " bytes and " +
                              std::to_string(kLongestText) + " is the limit; save it as a tensor");
    }
    try {
        read_json_object(json, label, [](const std::string&, JsonValue&&) {});
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

bool is_regular_file(const FileDescriptor& folder, const std::string& name) {
    struct stat status{};
    return ::fstatat(folder.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISREG(status.st_mode);
}

// To replace or remove a checkpoint deletes its folder, so the folder may contain only files of the
// checkpoint. Returns their names, with checkpoint.json last: as long as it is there, a folder whose deletion
// was interrupted is still recognised. `shown` is the folder's path in messages, and messages begin with
// `what`.
std::vector<std::string> check_owned(const FileDescriptor& folder, const fs::path& shown,
                                     const std::string& what) {
    std::vector<std::string> names;
    const bool is_listed = list_names(folder, [&names](const char* name) { names.emplace_back(name); });
    if (!is_listed) throw_io_error("read", shown, errno);
    if (names.empty()) return names;

    Manifest owned;
    try {
        const InputFile table(folder, kManifestName, shown / kManifestName);
        owned = parse_manifest(table.read_all(), table.shown());
    } catch (const Error&) {
        throw IoError(
            what + path_label(shown) +
            ": the folder holds other things and no readable checkpoint; choose another folder or empty it");
    }
    for (const std::string& name : names) {
        if ((name != kManifestName && !owned.contains(name)) || !is_regular_file(folder, name)) {
            throw IoError(what + path_label(shown) + ": it holds " + path_label(name) +
                          ", which is not part of it and would be lost; move that elsewhere");
        }
    }
    std::partition(names.begin(), names.end(), [](const std::string& name) { return name != kManifestName; });
    return names;
}

// For a removal: refuses an empty folder, too.
std::vector<std::string> check_all_owned(const FileDescriptor& folder, const fs::path& shown) {
    auto names = check_owned(folder, shown, "cannot remove the checkpoint ");
    if (!names.empty()) return names;
    throw IoError("cannot remove the checkpoint " + path_label(shown) +
                  ": the folder is empty; remove it yourself");
}

// Checks the target before anything is written. If another writer replaces the checkpoint during the check,
// the check starts again.
void check_target(const fs::path& target, const fs::path& shown, const CheckReplaceable& check) {
    for (int tries_left = 100;; --tries_left) {
        if (!is_taken(target)) return;
        std::error_code ignored;
        if (!fs::is_directory(target, ignored) && is_taken(target)) {
            throw IoError("cannot write the checkpoint " + path_label(shown) +
                          ": a file has that name; choose another name");
        }
        const FileDescriptor folder = open_existing(target);
        if (!folder) {
            if (errno == ENOENT && tries_left > 0) continue;
            throw_io_error("replace", shown, errno);
        }
        try {
            check(folder);
            return;
        } catch (const Error&) {
            if (tries_left == 0 || is_at(folder, target)) throw;
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
        const CheckReplaceable check = [&folder](const FileDescriptor& old) {
            return check_owned(old, folder, "cannot replace the checkpoint ");
        };
        recover_target(target);
        check_target(target, folder, check);
        TemporaryFolder temporary(target);
        const std::uint64_t byte_count = write_contents(temporary, metadata_json, layouts);
        temporary.replace_target(how, check);
        return byte_count;
    } catch (const NoSpaceError&) {
        throw_no_space(folder, needed_bytes);
    }
}

std::uint64_t write(const fs::path& folder, std::string_view metadata_json,
                    std::span<const TensorFile> files) {
    return write_checkpoint(folder, metadata_json, files, Replace::kSwapIfPossible);
}

void remove(const fs::path& folder) {
    std::error_code error;
    const fs::path target = real_path(folder, error);
    if (error) throw_io_error("remove", folder, error.value());
    if (fs::is_symlink(fs::symlink_status(folder, error))) {
        throw IoError("cannot remove the checkpoint " + path_label(folder) +
                      ": it is a link; remove the link, or the folder that it leads to");
    }
    recover_target(target);
    if (!is_taken(target)) return;
    remove_folder(target, [&folder](const FileDescriptor& old) { return check_all_owned(old, folder); });
}

void check_removable(const fs::path& folder) { check_all_owned(open_folder(folder), folder); }

}  // namespace flashoptim::checkpoint
