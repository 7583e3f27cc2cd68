// What a run's data was: sizes, order and hashes of its files, kept in checkpoints and compared when a run
// goes on. Opens no file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace flashoptim::trainer {

/// A file by its content: names do not count.
struct FileIdentity {
    std::int64_t size = 0;   ///< bytes
    std::uint64_t hash = 0;  ///< XXH64 of its bytes, or of blocks sampled over all of it

    bool operator==(const FileIdentity& other) const { return size == other.size && hash == other.hash; }
    bool operator!=(const FileIdentity& other) const { return !(*this == other); }
    bool operator<(const FileIdentity& other) const {
        return size != other.size ? size < other.size : hash < other.hash;
    }
};

/// The files of one source in order, without empty ones.
struct SourceIdentity {
    std::string kind;  ///< how the bytes become tokens: "bytes", "uint16", "uint32"
    std::vector<FileIdentity> files;
    std::vector<std::filesystem::path> paths;  ///< where the files lie now; empty if read from a checkpoint
};

/// All data of a run, and where training ends and validation begins.
struct DataIdentity {
    SourceIdentity training;
    std::optional<SourceIdentity> validation;  ///< where it has files of its own
    std::int64_t training_tokens = 0;
    std::int64_t validation_tokens = 0;
};

/// What is different in `now`, as one phrase that names the file if it is one; nothing if all is the same.
std::optional<std::string> difference(const DataIdentity& before, const DataIdentity& now);

/// A file as text, "<size> <16 hexadecimal digits>", and back; nothing if the text is something else.
std::string to_text(const FileIdentity& file);
std::optional<FileIdentity> file_identity(const std::string& text);

}  // namespace flashoptim::trainer
