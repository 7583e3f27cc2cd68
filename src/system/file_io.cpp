// File access that reports IoError and FormatError.
#include "flashoptim/system/file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#include "flashoptim/system/message.h"

namespace flashoptim::checkpoint {
namespace {

// Small enough to stay in the cache between the checksum and the write.
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;

std::string_view remedy_for(int error_number) {
    switch (error_number) {
        case ENOENT:
        case ENOTDIR:
        case ENAMETOOLONG:
        case ELOOP:
        case EISDIR:
            return "check the path";
        case EACCES:
        case EPERM:
        case EROFS:
            return "choose a place you have access to, or change its permissions";
        case EBUSY:
        case EXDEV:
            return "a disk is mounted there, or it belongs to the image of a container: choose a place "
                   "inside it, or another one";
        case EMFILE:
        case ENFILE:
            return "close other files or raise the limit on open files";
        case EPIPE:
            return "its reader went away: keep that reading, or give a file";
        default:
            return "check the disk and try again";
    }
}

FileDescriptor open_at(int folder, const std::filesystem::path& name, int flags,
                       const std::filesystem::path& shown) {
    FileDescriptor descriptor(::openat(folder, name.c_str(), flags | O_CLOEXEC));
    if (!descriptor) throw_io_error("open", shown, errno);
    return descriptor;
}

}  // namespace

void throw_io_error(std::string_view action, const std::filesystem::path& path, int error_number) {
    const std::string what = "cannot " + std::string(action) + " " + path_label(path) + ": " +
                             std::generic_category().message(error_number) + "; ";
    if (error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG) {
        throw NoSpaceError(what + (error_number == EFBIG ? "raise the limit on the size of a file (ulimit -f)"
                                                         : "free some space or choose another disk"));
    }
    throw IoError(what + std::string(remedy_for(error_number)));
}

void throw_no_space(const std::filesystem::path& path, std::uint64_t needed_bytes) {
    throw IoError("cannot write " + path_label(path) + ": no space left; it needs " +
                  std::to_string(needed_bytes) +
                  " bytes beside what is there now: free that much, choose another disk or raise the "
                  "limit on the size of a file (ulimit -f)");
}

FileDescriptor::~FileDescriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

InputFile::InputFile(const std::filesystem::path& file) : InputFile(FileDescriptor(), file, file) {}

InputFile::InputFile(const FileDescriptor& folder, const std::filesystem::path& name,
                     std::filesystem::path shown)
    : shown_(std::move(shown)) {
    // Without O_NONBLOCK, opening a pipe would block until there is a writer.
    descriptor_ = open_at(folder ? folder.get() : AT_FDCWD, name, O_RDONLY | O_NONBLOCK, shown_);
    struct stat status{};
    if (::fstat(descriptor_.get(), &status) != 0) throw_io_error("read", shown_, errno);
    if (!S_ISREG(status.st_mode)) {
        throw IoError("cannot read " + path_label(shown_) + ": it is not a regular file; check the path");
    }
    byte_count_ = static_cast<std::uint64_t>(status.st_size);
}

void InputFile::read(std::uint64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
        const ssize_t count = ::pread(descriptor_.get(), out.data(), out.size(), static_cast<off_t>(offset));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) throw_io_error("read", shown_, errno);
        if (count == 0) {
            throw IoError("cannot read " + path_label(shown_) + ": it ends at byte " +
                          std::to_string(offset) + " and had " + std::to_string(byte_count_) +
                          " when it was opened; keep others from writing to it");
        }
        out = out.subspan(static_cast<std::size_t>(count));
        offset += static_cast<std::uint64_t>(count);
    }
}

std::string InputFile::read_all() const {
    if (byte_count_ > kLongestText) {
        throw FormatError(path_label(shown_) + " has " + std::to_string(byte_count_) +
                          " bytes, more than such a text may have (" + std::to_string(kLongestText) +
                          "); check that this is the right file");
    }
    std::string text(static_cast<std::size_t>(byte_count_), '\0');
    read(0, std::as_writable_bytes(std::span(text)));
    return text;
}

std::uint32_t InputFile::crc32() const {
    std::vector<std::byte> piece(static_cast<std::size_t>(std::min<std::uint64_t>(kPieceBytes, byte_count_)));
    Crc32 crc;
    for (std::uint64_t offset = 0; offset < byte_count_;) {
        const std::uint64_t count = std::min<std::uint64_t>(piece.size(), byte_count_ - offset);
        const auto part = std::span(piece).first(static_cast<std::size_t>(count));
        read(offset, part);
        crc.update(part);
        offset += count;
    }
    return crc.value();
}

void OutputFile::write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const auto piece = bytes.first(std::min(bytes.size(), kPieceBytes));
        const ssize_t count = ::write(descriptor_.get(), piece.data(), piece.size());
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) throw_io_error("write", shown_, errno);
        const auto written = static_cast<std::size_t>(count);
        crc_.update(piece.first(written));
        byte_count_ += written;
        bytes = bytes.subspan(written);
    }
}

void OutputFile::sync() { checkpoint::sync(descriptor_, shown_); }

FileDescriptor open_folder(const std::filesystem::path& folder) {
    return open_at(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY, folder);
}

FileDescriptor open_existing(const std::filesystem::path& path) {
    return FileDescriptor(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
}

bool is_taken(const std::filesystem::path& path) {
    struct stat status{};
    return ::lstat(path.c_str(), &status) == 0;
}

bool is_vacant(const std::filesystem::path& path) {
    if (!is_taken(path)) return true;
    const FileDescriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    return folder && is_empty(folder);
}

bool is_empty(const FileDescriptor& folder) {
    bool has_any = false;
    return list_names(folder, [&has_any](const char*) { has_any = true; }) && !has_any;
}

void write_all(const FileDescriptor& descriptor, std::string_view text, const std::filesystem::path& shown) {
    while (!text.empty()) {
        const ssize_t count = ::write(descriptor.get(), text.data(), text.size());
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) throw_io_error("write", shown, errno);
        text.remove_prefix(static_cast<std::size_t>(count));
    }
}

bool is_at(const FileDescriptor& descriptor, const std::filesystem::path& path) {
    struct stat opened{};
    struct stat named{};
    return ::fstat(descriptor.get(), &opened) == 0 && ::stat(path.c_str(), &named) == 0 &&
           opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
}

void sync(const FileDescriptor& descriptor, const std::filesystem::path& shown) {
    while (::fsync(descriptor.get()) != 0) {
        if (errno == EINTR) continue;
        if (errno == EINVAL || errno == ENOTSUP) return;
        throw_io_error("write", shown, errno);
    }
}

}  // namespace flashoptim::checkpoint
