// Reads several data files as one sequence: maps an index to its file. Does not know what the elements mean.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "trainer/data/data_file.h"

namespace flashoptim::trainer {

/// One file of a chain. Its elements have the global indices [begin, begin + size).
struct FilePart {
    std::unique_ptr<DataFile> file;
    std::int64_t begin = 0;
    std::int64_t size = 0;
    std::int64_t byte_offset = 0;  ///< of the first element, in the file
};

/// The files in order, without empty ones.
class FileChain {
public:
    void add(std::unique_ptr<DataFile> file, std::int64_t size, std::int64_t byte_offset) {
        if (size > 0) {
            parts_.push_back({std::move(file), size_, size, byte_offset});
            size_ += size;
        }
    }

    std::int64_t size() const { return size_; }
    const std::vector<FilePart>& parts() const { return parts_; }

    /// The identities of the files. Each file must have been scanned.
    SourceIdentity identity(std::string kind) const {
        SourceIdentity identity{std::move(kind), {}, {}};
        for (const FilePart& part : parts_) {
            identity.files.push_back(part.file->identity());
            identity.paths.push_back(part.file->path());
        }
        return identity;
    }

    /// Calls visit(part, first element within the part, count, first position in the output) for each file
    /// that the range touches.
    template <typename Visit>
    void for_each_part(std::int64_t begin, std::int64_t count, Visit&& visit) const {
        auto part =
            std::upper_bound(parts_.begin(), parts_.end(), begin,
                             [](std::int64_t index, const FilePart& other) { return index < other.begin; });
        --part;
        for (std::int64_t done = 0; done < count; ++part) {
            const std::int64_t first = begin + done - part->begin;
            const std::int64_t here = std::min(count - done, part->size - first);
            visit(*part, first, here, done);
            done += here;
        }
    }

private:
    std::vector<FilePart> parts_;
    std::int64_t size_ = 0;
};

/// Makes tokens of `Token`s that were read into the front of `out`, where they end up as integers of 64 bits.
template <typename Token>
void widen(std::span<std::int64_t> out) {
    const std::byte* const from = std::as_bytes(out).data();
    for (std::size_t index = out.size();
         index-- > 0;) {  // backwards: what is not read yet lies before what is written
        Token token = 0;
        std::memcpy(&token, from + index * sizeof token, sizeof token);
        out[index] = std::int64_t{token};
    }
}

}  // namespace flashoptim::trainer
