// File access that reports IoError and FormatError: descriptors, exact reads, checksummed writes, syncing.
// Knows no file format.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "flashoptim/error.h"
#include "flashoptim/system/crc32.h"

namespace flashoptim::checkpoint {

/// The disk, the quota or the allowed file size is used up. Code that knows how many bytes are needed catches
/// it and calls throw_no_space().
class NoSpaceError : public IoError {
    using IoError::IoError;
};

/// Throws the IoError (or NoSpaceError) of a system call: "cannot <action> '<path>': <reason>; <remedy>".
[[noreturn]] void throw_io_error(std::string_view action, const std::filesystem::path& path,
                                 int error_number);

/// Throws the IoError for a NoSpaceError, with the bytes that the whole file or folder needs.
[[noreturn]] void throw_no_space(const std::filesystem::path& path, std::uint64_t needed_bytes);

/// Owns a descriptor; -1 means none.
class FileDescriptor {
public:
    FileDescriptor() = default;
    explicit FileDescriptor(int descriptor) : descriptor_(descriptor) {}
    FileDescriptor(FileDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
    FileDescriptor& operator=(FileDescriptor&& other) noexcept {
        std::swap(descriptor_, other.descriptor_);
        return *this;
    }
    ~FileDescriptor();

    int get() const { return descriptor_; }
    explicit operator bool() const { return descriptor_ >= 0; }

private:
    int descriptor_ = -1;
};

/// The longest JSON document that is read or written. 2^30 bytes describe about two million parameters.
inline constexpr std::uint64_t kLongestText = std::uint64_t{1} << 30;

/// A regular file opened for reading. `shown` is the path in messages.
class InputFile {
public:
    explicit InputFile(const std::filesystem::path& file);
    InputFile(const FileDescriptor& folder, const std::filesystem::path& name, std::filesystem::path shown);

    const std::filesystem::path& shown() const { return shown_; }
    std::uint64_t byte_count() const { return byte_count_; }

    /// Reads exactly `out.size()` bytes from `offset`. Thread-safe.
    void read(std::uint64_t offset, std::span<std::byte> out) const;

    /// Reads the whole file as text. Throws FormatError if it is longer than kLongestText.
    std::string read_all() const;

    /// Checksum of the whole file.
    std::uint32_t crc32() const;

private:
    std::filesystem::path shown_;
    FileDescriptor descriptor_;
    std::uint64_t byte_count_ = 0;
};

/// Writes to an open descriptor from its start, and counts and checksums the bytes. `shown` is the path in
/// messages.
class OutputFile {
public:
    OutputFile(FileDescriptor descriptor, std::filesystem::path shown)
        : shown_(std::move(shown)), descriptor_(std::move(descriptor)) {}

    void write(std::span<const std::byte> bytes);
    void write(std::string_view text) { write(std::as_bytes(std::span(text))); }

    /// Syncs the file to the disk.
    void sync();

    std::uint64_t byte_count() const { return byte_count_; }
    std::uint32_t crc32() const { return crc_.value(); }

private:
    std::filesystem::path shown_;
    FileDescriptor descriptor_;
    std::uint64_t byte_count_ = 0;
    Crc32 crc_;
};

/// Opens a folder, for openat, fsync and flock. Throws IoError.
FileDescriptor open_folder(const std::filesystem::path& folder);

/// Opens the file or folder at `path` for fsync and flock, without following a link. If that fails, returns
/// none and sets errno.
FileDescriptor open_existing(const std::filesystem::path& path);

/// Whether anything lies at `path`, also a broken link.
bool is_taken(const std::filesystem::path& path);

/// Whether a folder may be renamed to `path`: there is nothing, or an empty folder.
bool is_vacant(const std::filesystem::path& path);

/// Whether an open folder could be listed and is empty.
bool is_empty(const FileDescriptor& folder);

/// Writes all of `text` to a descriptor. `shown` is the path in messages. Throws IoError.
void write_all(const FileDescriptor& descriptor, std::string_view text, const std::filesystem::path& shown);

/// Calls `use(const char* name)` for every entry of an open folder. Returns whether all entries could be
/// listed.
template <typename Use>
bool list_names(const FileDescriptor& folder, Use use) {
    struct Closer {
        void operator()(DIR* stream) const { ::closedir(stream); }
    };
    // A new open file description, because its offset begins at the first entry.
    const int own = ::openat(folder.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (own < 0) return false;
    const std::unique_ptr<DIR, Closer> stream(::fdopendir(own));
    if (!stream) {
        ::close(own);
        return false;
    }
    for (;;) {
        errno = 0;
        const dirent* entry = ::readdir(stream.get());
        if (entry == nullptr) return errno == 0;
        if (std::strcmp(entry->d_name, ".") == 0 || std::strcmp(entry->d_name, "..") == 0) continue;
        use(static_cast<const char*>(entry->d_name));
    }
}

/// Whether the open file or folder still has the name `path`.
bool is_at(const FileDescriptor& descriptor, const std::filesystem::path& path);

/// Syncs an open file or folder to the disk. A file system that cannot sync folders counts as synced.
void sync(const FileDescriptor& descriptor, const std::filesystem::path& shown);

}  // namespace flashoptim::checkpoint

#endif
