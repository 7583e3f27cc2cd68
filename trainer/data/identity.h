// The identity of a run's data: sizes, order and hashes of its files. Checkpoints store it, and a resumed run
// compares it. Opens no file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace flashoptim::trainer {

/// A file, identified by its content. Its name does not matter.
struct FileIdentity {
    std::int64_t size = 0;   ///< bytes
    std::uint64_t hash = 0;  ///< XXH64 of its bytes, or of blocks sampled over all of it

    bool operator==(const FileIdentity& other) const { return size == other.size && hash == other.hash; }
    bool operator!=(const FileIdentity& other) const { return !(*this == other); }
    bool operator<(const FileIdentity& other) const {
        return size != other.size ? size < other.size : hash < other.hash;
    }
};

/// The files of one source, in order, without empty ones.
struct SourceIdentity {
    std::string kind;  ///< how the bytes become tokens: "bytes", "uint16", "uint32"
    std::vector<FileIdentity> files;
    std::vector<std::filesystem::path> paths;  ///< the files' paths; empty if read from a checkpoint
};

/// All data of a run, and the boundary between training and validation.
struct DataIdentity {
    SourceIdentity training;
    std::optional<SourceIdentity> validation;  ///< if validation has files of its own
    std::int64_t training_tokens = 0;
    std::int64_t validation_tokens = 0;
};

/// What differs in `now`, as one phrase. It names the file if it is only one. Empty if nothing differs.
std::optional<std::string> difference(const DataIdentity& before, const DataIdentity& now);

/// Converts a file's identity to text, "<size> <16 hexadecimal digits>", and back. Empty for any other text.
std::string to_text(const FileIdentity& file);
std::optional<FileIdentity> file_identity(const std::string& text);

}  // namespace flashoptim::trainer
