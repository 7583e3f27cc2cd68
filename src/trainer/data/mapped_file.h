// A file as read-only memory, so that data sets larger than memory can be read. Knows nothing of what the bytes mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace flashoptim::trainer {

/// Maps a regular file for as long as the object lives; the file must not be shortened meanwhile. Thread-safe.
class MappedFile {
public:
    /// Throws IoError that names the file.
    explicit MappedFile(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;

    std::span<const std::byte> bytes() const { return {data_, size_}; }
    const std::filesystem::path& path() const { return path_; }

    /// Gives the pages read so far back to the operating system: after a pass over the whole file they would count as memory of
    /// this process. They are read again when needed.
    void release_pages() const;

private:
    void unmap() noexcept;

    std::filesystem::path path_;
    const std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace flashoptim::trainer
