// A file of a data set: read at any place by pread, never mapped, so that a file which others cut short is an
// error and no SIGBUS. Knows nothing of what the bytes mean.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "system/file_io.h"
#include "trainer/data/identity.h"

namespace flashoptim::trainer {

/// Bytes [begin, begin + size) of a file.
struct ByteRange {
    std::int64_t begin = 0;
    std::int64_t size = 0;
};

/// Length of a sampled block.
inline constexpr std::int64_t kSampleBytes = std::int64_t{64} << 10;

/// `blocks` (at least 2) ranges of kSampleBytes spread evenly over a file, its first and last bytes among
/// them; one range with all of it where that is no more. They begin at multiples of 4096 and depend on the
/// two numbers only.
std::vector<ByteRange> sampled_ranges(std::int64_t file_size, std::int64_t blocks);

/// A regular file, as it was when it was opened. Where it was changed since, by its times, size or inode, a
/// read compares its content with the one that scan() saw: the same content is read on, another one is an
/// error. Thread-safe.
class DataFile {
public:
    /// Throws IoError that names the file: missing, not readable, or no regular file (a pipe or a device
    /// would block or never end). With keep_open the file stays open, so that renaming or replacing it does
    /// not matter to this object; else each read opens it again, and there is no limit to the number of
    /// files.
    DataFile(std::filesystem::path path, bool keep_open);

    const std::filesystem::path& path() const { return path_; }
    std::int64_t size() const { return size_; }

    /// Reads exactly `out.size()` bytes from `offset`. Throws IoError if the file ends before, was changed or
    /// cannot be read.
    void read(std::int64_t offset, std::span<std::byte> out) const;

    using Visit = std::function<void(std::int64_t offset, std::span<const std::byte> bytes)>;

    /// Reads the file once, in order and in pieces: all of it, or `blocks` sampled blocks (sampled_ranges) if
    /// that is not 0. Keeps the hash of what was read as the file's identity. Called once, before others
    /// read. Throws as read() does, and what `visit` throws.
    void scan(std::int64_t blocks, const Visit& visit);

    /// Size and hash; scan() must have been called.
    const FileIdentity& identity() const { return *identity_; }

private:
    // What shows without reading a byte that a file is what it was.
    struct Stamp {
        dev_t device = 0;
        ino_t inode = 0;
        off_t size = 0;
        timespec modified{};
        timespec changed{};

        static Stamp of(const struct stat& status);
        bool operator==(const Stamp& other) const;
    };

    // The open file, or the one that is kept open.
    class Opened;

    void read_from(const checkpoint::FileDescriptor& file, std::int64_t offset,
                   std::span<std::byte> out) const;
    FileIdentity read_identity(const checkpoint::FileDescriptor& file, const Visit& visit) const;
    void require_unchanged(const checkpoint::FileDescriptor& file) const;

    std::filesystem::path path_;
    std::int64_t size_ = 0;
    std::int64_t blocks_ = 0;
    std::optional<FileIdentity> identity_;
    checkpoint::FileDescriptor kept_;
    mutable std::mutex mutex_;  // of stamp_
    mutable Stamp stamp_;
};

/// Opens all of a data set's files, in order. A few are kept open, many are opened for each read.
std::vector<std::unique_ptr<DataFile>> open_files(const std::vector<std::filesystem::path>& paths);

/// Bytes of all files together.
std::int64_t total_size(const std::vector<std::unique_ptr<DataFile>>& files);

/// How a file of `file_size` bytes in a data set of `total_size` is read at the start: 0 for all of it, as in
/// every data set of up to 1 GiB, else the number of blocks that scan() samples. All files together then have
/// some 1,000, each at least two.
std::int64_t blocks_to_scan(std::int64_t file_size, std::int64_t total_size);

}  // namespace flashoptim::trainer
