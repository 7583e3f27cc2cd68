// Opens checkpoint folders.
#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <system_error>

#include "flashoptim/system/atomic_path.h"
#include "flashoptim/system/file_io.h"
#include "flashoptim/system/message.h"
#include "manifest.h"
#include "safetensors_file.h"

namespace flashoptim::checkpoint {
namespace {

namespace fs = std::filesystem;

struct OpenFile {
    std::shared_ptr<const InputFile> file;
    std::uint32_t crc32 = 0;
};

// Opens a file that every checkpoint has. If it is missing, the message blames the folder, not the path.
std::shared_ptr<const InputFile> open_member(const FileDescriptor& descriptor, const fs::path& folder,
                                             const fs::path& name) {
    try {
        return std::make_shared<const InputFile>(descriptor, name, folder / name);
    } catch (const IoError& error) {
        std::error_code ignored;
        if (fs::exists(folder / name, ignored)) throw;
        throw FormatError(path_label(folder) + " is not a complete checkpoint: " + name.string() +
                          " is missing; give a folder that was written as a checkpoint, or copy it again");
    }
}

void check_crc(const OpenFile& member) {
    const std::uint32_t crc = member.file->crc32();
    if (crc == member.crc32) return;
    char text[64];
    std::snprintf(text, sizeof text, "%08x instead of %08x", static_cast<unsigned>(crc),
                  static_cast<unsigned>(member.crc32));
    throw FormatError(path_label(member.file->shown()) + " is damaged: its CRC-32 is " + text +
                      "; copy it again or use an older checkpoint");
}

std::string file_name(std::string_view name) { return std::string(name).append(kTensorSuffix); }

}  // namespace

struct Checkpoint::State {
    // `descriptor` is the open folder.
    State(fs::path path, const FileDescriptor& descriptor) : folder(std::move(path)) {
        const auto table = open_member(descriptor, folder, kManifestName);
        byte_count = table->byte_count();
        for (const auto& [name, entry] : parse_manifest(table->read_all(), table->shown())) {
            OpenFile member{open_member(descriptor, folder, name), entry.crc32};
            if (member.file->byte_count() != entry.byte_count) {
                throw FormatError(path_label(member.file->shown()) + " is " +
                                  (member.file->byte_count() < entry.byte_count ? "truncated" : "too long") +
                                  ": it needs " + std::to_string(entry.byte_count) + " bytes and has " +
                                  std::to_string(member.file->byte_count()) +
                                  "; copy it again or use an older checkpoint");
            }
            byte_count += entry.byte_count;
            files.emplace(name, std::move(member));
        }
        check_crc(files.at(kMetadataName));
        metadata_json = files.at(kMetadataName).file->read_all();
        files.erase(kMetadataName);
    }

    fs::path folder;
    std::map<std::string, OpenFile> files;  // the tensor files, by file name
    std::string metadata_json;
    std::uint64_t byte_count = 0;
};

Checkpoint::Checkpoint(std::shared_ptr<const State> state) : state_(std::move(state)) {}

Checkpoint Checkpoint::open(const fs::path& folder) {
    // A writer may replace the folder with a newer checkpoint while it is being opened, even several times.
    // Then start again.
    for (int tries_left = 100;; --tries_left) {
        std::error_code error;
        const fs::path target = real_path(folder, error);
        const FoundFolder found = error ? FoundFolder() : find_folder(target, folder);
        if (!found.descriptor) {
            throw IoError("cannot open the checkpoint " + path_label(folder) +
                          ": there is nothing; check the path");
        }
        try {
            return Checkpoint(std::make_shared<const State>(folder, found.descriptor));
        } catch (const Error&) {
            if (tries_left == 0 || is_at(found.descriptor, found.path)) throw;
        }
    }
}

bool exists(const fs::path& folder) {
    std::error_code error;
    const fs::path target = real_path(folder, error);
    return !error && (is_taken(target) || find_folder(target, folder).descriptor);
}

const fs::path& Checkpoint::folder() const { return state_->folder; }

const std::string& Checkpoint::metadata_json() const { return state_->metadata_json; }

std::uint64_t Checkpoint::byte_count() const { return state_->byte_count; }

std::vector<std::string> Checkpoint::file_names() const {
    std::vector<std::string> names;
    for (const auto& [name, member] : state_->files)
        names.push_back(name.substr(0, name.size() - kTensorSuffix.size()));
    return names;
}

bool Checkpoint::contains(std::string_view name) const { return state_->files.contains(file_name(name)); }

SafetensorsFile Checkpoint::file(std::string_view name, Verify verify) const {
    const auto member = state_->files.find(file_name(name));
    if (member == state_->files.end()) {
        throw FormatError(path_label(folder()) + " has no " + printable(file_name(name)) +
                          "; use a checkpoint of the same kind of run");
    }
    if (verify == Verify::kChecksum) check_crc(member->second);
    return SafetensorsFile(std::make_shared<const SafetensorsFile::State>(member->second.file));
}

}  // namespace flashoptim::checkpoint
