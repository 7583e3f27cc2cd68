// A file of a data set. It is read with pread and never mapped, so that truncating the file causes an error
// and not a SIGBUS. Does not know what the bytes mean.
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

#include "flashoptim/system/file_io.h"
#include "trainer/data/identity.h"

namespace flashoptim::trainer {

/// Bytes [begin, begin + size) of a file.
struct ByteRange {
    std::int64_t begin = 0;
    std::int64_t size = 0;
};

/// The length of a sampled block.
inline constexpr std::int64_t kSampleBytes = std::int64_t{64} << 10;

/// Returns `blocks` (at least 2) ranges of kSampleBytes, spread evenly over a file, including its first and
/// last bytes. If the file is not larger than that, returns one range with the whole file. Ranges begin at
/// multiples of 4096 and depend only on the two numbers.
std::vector<ByteRange> sampled_ranges(std::int64_t file_size, std::int64_t blocks);

/// A regular file as it was when it was opened. If its times, size or inode have changed since, a read
/// compares the content with what scan() saw: the same content is accepted, different content is an error.
/// Thread-safe.
class DataFile {
public:
    /// Throws an IoError that names the file if it is missing, not readable or not a regular file (a pipe or
    /// a device would block or never end). With keep_open the file stays open, so renaming or replacing it
    /// does not affect this object. Otherwise each read opens the file again, so the number of files is not
    /// limited.
    DataFile(std::filesystem::path path, bool keep_open);

    const std::filesystem::path& path() const { return path_; }
    std::int64_t size() const { return size_; }

    /// Reads exactly `out.size()` bytes at `offset`. Throws IoError if the file is too short, was changed or
    /// cannot be read.
    void read(std::int64_t offset, std::span<std::byte> out) const;

    using Visit = std::function<void(std::int64_t offset, std::span<const std::byte> bytes)>;

    /// Reads the file once, in order and in pieces: all of it, or `blocks` sampled blocks (sampled_ranges) if
    /// `blocks` is not 0. Stores the hash of these bytes as the file's identity. Call it once, before any
    /// read. Throws what read() and `visit` throw.
    void scan(std::int64_t blocks, const Visit& visit);

    /// The size and hash. scan() must have been called.
    const FileIdentity& identity() const { return *identity_; }

private:
    // Shows without reading a byte whether a file is unchanged.
    struct Stamp {
        dev_t device = 0;
        ino_t inode = 0;
        off_t size = 0;
        timespec modified{};
        timespec changed{};

        static Stamp of(const struct stat& status);
        bool operator==(const Stamp& other) const;
    };

    // The file, opened now or kept open.
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

/// Opens all files of a data set, in order. If there are only a few, they are kept open; otherwise each read
/// opens its file.
std::vector<std::unique_ptr<DataFile>> open_files(const std::vector<std::filesystem::path>& paths);

/// The bytes of all files together.
std::int64_t total_size(const std::vector<std::unique_ptr<DataFile>>& files);

/// The number of blocks that scan() samples of a file of `file_size` bytes in a data set of `total_size`
/// bytes. 0 means the whole file, as in every data set of up to 1 GiB. Otherwise all files together have
/// about 1,000 blocks, and each file at least two.
std::int64_t blocks_to_scan(std::int64_t file_size, std::int64_t total_size);

}  // namespace flashoptim::trainer
