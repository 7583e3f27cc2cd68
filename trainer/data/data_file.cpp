// Reading of data files and noticing that they were changed.
#include "trainer/data/data_file.h"

#include <fcntl.h>
#include <unistd.h>
#define XXH_INLINE_ALL  // nothing is linked
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;
constexpr std::int64_t kSampleAlignment = 4096;
constexpr std::int64_t kReadWhole = std::int64_t{1} << 30;
constexpr std::int64_t kBlocksInAll = 1024;
// Of one source. Two sources leave most of the usual 1,024 descriptors of a process to others.
constexpr std::size_t kMostKeptOpen = 128;

const char* kind_of(mode_t mode) {
    return S_ISFIFO(mode)   ? "a pipe"
           : S_ISSOCK(mode) ? "a socket"
           : S_ISCHR(mode)  ? "a device"
           : S_ISBLK(mode)  ? "a disk"
           : S_ISDIR(mode)  ? "a folder"
                            : "something else";
}

void require_regular(const struct stat& status, const std::filesystem::path& path) {
    if (!S_ISREG(status.st_mode)) {
        throw IoError(path.string() + " is no regular file but " + kind_of(status.st_mode) +
                      "; data is read many times and at any place: write it to a file first");
    }
}

bool equal(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

struct stat status_of(const checkpoint::FileDescriptor& file, const std::filesystem::path& path) {
    struct stat status{};
    if (::fstat(file.get(), &status) != 0) checkpoint::throw_io_error("read", path, errno);
    return status;
}

checkpoint::FileDescriptor open_regular(const std::filesystem::path& path) {
    // Asked by name first: to open a device can do something to it. O_NONBLOCK: the file may have become a
    // pipe since.
    struct stat status{};
    if (::stat(path.c_str(), &status) != 0) checkpoint::throw_io_error("read", path, errno);
    require_regular(status, path);
    checkpoint::FileDescriptor file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (!file) checkpoint::throw_io_error("read", path, errno);
    require_regular(status_of(file, path), path);
    return file;
}

}  // namespace

std::vector<ByteRange> sampled_ranges(std::int64_t file_size, std::int64_t blocks) {
    if (file_size / kSampleBytes < blocks) {
        return {{0, file_size}};
    }
    std::vector<ByteRange> ranges;
    const std::int64_t last = file_size - kSampleBytes;
    for (std::int64_t block = 0; block < blocks; ++block) {
        // Two factors, so that no product leaves 64 bits.
        const std::int64_t steps = blocks - 1;
        const std::int64_t exact = last / steps * block + last % steps * block / steps;
        const std::int64_t begin = exact / kSampleAlignment * kSampleAlignment;
        ranges.push_back({begin, block == steps ? file_size - begin : kSampleBytes});
    }
    return ranges;
}

DataFile::Stamp DataFile::Stamp::of(const struct stat& status) {
    return {status.st_dev, status.st_ino, status.st_size, status.st_mtim, status.st_ctim};
}

bool DataFile::Stamp::operator==(const Stamp& other) const {
    return device == other.device && inode == other.inode && size == other.size &&
           equal(modified, other.modified) && equal(changed, other.changed);
}

class DataFile::Opened {
public:
    explicit Opened(const DataFile& file) : kept_(file.kept_) {
        if (!kept_) own_ = open_regular(file.path_);
    }
    const checkpoint::FileDescriptor& get() const { return kept_ ? kept_ : own_; }

private:
    const checkpoint::FileDescriptor& kept_;
    checkpoint::FileDescriptor own_;
};

DataFile::DataFile(std::filesystem::path path, bool keep_open) : path_(std::move(path)) {
    checkpoint::FileDescriptor file = open_regular(path_);
    const struct stat status = status_of(file, path_);
    size_ = status.st_size;
    stamp_ = Stamp::of(status);
    if (keep_open) kept_ = std::move(file);
}

void DataFile::read(std::int64_t offset, std::span<std::byte> out) const {
    const Opened file(*this);
    read_from(file.get(), offset, out);
    // After reading: a write changes the times of a file before its content.
    require_unchanged(file.get());
}

void DataFile::scan(std::int64_t blocks, const Visit& visit) {
    blocks_ = blocks;
    const Opened file(*this);
    FileIdentity identity = read_identity(file.get(), visit);
    require_unchanged(file.get());
    identity_ = identity;
}

void DataFile::read_from(const checkpoint::FileDescriptor& file, std::int64_t offset,
                         std::span<std::byte> out) const {
    while (!out.empty()) {
        const ssize_t count = ::pread(file.get(), out.data(), out.size(), static_cast<off_t>(offset));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) checkpoint::throw_io_error("read", path_, errno);
        if (count == 0) {
            throw IoError(path_.string() + " was cut short while it was read: it had " +
                          std::to_string(size_) + " bytes and ends at " + std::to_string(offset) +
                          " now; restore it and resume");
        }
        out = out.subspan(static_cast<std::size_t>(count));
        offset += count;
    }
}

FileIdentity DataFile::read_identity(const checkpoint::FileDescriptor& file, const Visit& visit) const {
    const std::vector<ByteRange> ranges =
        blocks_ == 0 ? std::vector<ByteRange>{{0, size_}} : sampled_ranges(size_, blocks_);
    std::vector<std::byte> piece(static_cast<std::size_t>(std::min(kPieceBytes, size_)));
    XXH64_state_t hash;
    XXH64_reset(&hash, 0);
    for (const ByteRange& range : ranges) {
        for (std::int64_t done = 0; done < range.size; done += kPieceBytes) {
            const auto bytes =
                std::span(piece).first(static_cast<std::size_t>(std::min(kPieceBytes, range.size - done)));
            read_from(file, range.begin + done, bytes);
            XXH64_update(&hash, bytes.data(), bytes.size());
            if (visit) visit(range.begin + done, bytes);
        }
    }
    return {size_, XXH64_digest(&hash)};
}

void DataFile::require_unchanged(const checkpoint::FileDescriptor& file) const {
    const struct stat status = status_of(file, path_);
    const Stamp now = Stamp::of(status);
    const std::lock_guard lock(mutex_);
    if (now == stamp_) {
        return;
    }
    // Touched, moved, or longer than it was: what counts is whether the bytes of this run are still there.
    if (!identity_ || status.st_size < size_ || read_identity(file, {}) != *identity_) {
        throw IoError(path_.string() + " was changed while it was read; restore it and resume");
    }
    stamp_ = now;
}

std::vector<std::unique_ptr<DataFile>> open_files(const std::vector<std::filesystem::path>& paths) {
    std::vector<std::unique_ptr<DataFile>> files;
    for (const std::filesystem::path& path : paths) {
        files.push_back(std::make_unique<DataFile>(path, paths.size() <= kMostKeptOpen));
    }
    return files;
}

std::int64_t total_size(const std::vector<std::unique_ptr<DataFile>>& files) {
    std::int64_t bytes = 0;
    for (const std::unique_ptr<DataFile>& file : files) {
        bytes += file->size();
    }
    return bytes;
}

std::int64_t blocks_to_scan(std::int64_t file_size, std::int64_t total_size) {
    if (total_size <= kReadWhole) {
        return 0;
    }
    const double share = static_cast<double>(file_size) / static_cast<double>(total_size);
    return std::max(std::int64_t{2}, static_cast<std::int64_t>(share * kBlocksInAll));
}

}  // namespace flashoptim::trainer
