// Mapping of files through mmap. Knows nothing of what the bytes mean.
#include "trainer/data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, int code) {
    throw IoError(path.string() + " cannot be read: " + std::generic_category().message(code) +
                  "; check the path and its permissions");
}

// Closes on every way out; a mapping outlives its descriptor.
struct Descriptor {
    int value;
    ~Descriptor() {
        if (value >= 0) {
            ::close(value);
        }
    }
};

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    struct stat status{};
    if (file.value < 0 || ::fstat(file.value, &status) != 0) {
        fail(path, errno);
    }
    if (!S_ISREG(status.st_mode)) {
        throw IoError(path.string() + " is no regular file; give a file or a folder of files");
    }
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) {
        return;  // an empty mapping is an error of the operating system, an empty file is not
    }
    void* const memory = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.value, 0);
    if (memory == MAP_FAILED) {
        fail(path, errno);
    }
    data_ = static_cast<const std::byte*>(memory);
}

MappedFile::~MappedFile() { unmap(); }

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    if (this != &other) {
        unmap();
        path_ = std::move(other.path_);
        data_ = std::exchange(other.data_, nullptr);
        size_ = std::exchange(other.size_, 0);
    }
    return *this;
}

void MappedFile::release_pages() const {
    if (data_ != nullptr) {
        ::madvise(const_cast<std::byte*>(data_), size_, MADV_DONTNEED);
    }
}

void MappedFile::unmap() noexcept {
    if (data_ != nullptr) {
        ::munmap(const_cast<std::byte*>(data_), size_);
        data_ = nullptr;
    }
}

}  // namespace flashoptim::trainer
