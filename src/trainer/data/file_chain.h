// Several mapped files read as one sequence: which file holds which index. Knows nothing of what the elements mean.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "trainer/data/mapped_file.h"

namespace flashoptim::trainer {

/// One file of a chain: its elements have the global indices [begin, begin + size).
struct FilePart {
    MappedFile file;
    std::int64_t begin = 0;
    std::int64_t size = 0;
    std::int64_t byte_offset = 0;  ///< of the first element in the file
};

/// Files in order, without empty ones.
class FileChain {
public:
    void add(MappedFile file, std::int64_t size, std::int64_t byte_offset) {
        if (size > 0) {
            parts_.push_back({std::move(file), size_, size, byte_offset});
            size_ += size;
        }
    }

    std::int64_t size() const { return size_; }
    const std::vector<FilePart>& parts() const { return parts_; }

    /// Calls visit(part, first element within the part, count, first position in the output) for each file that the range touches.
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

}  // namespace flashoptim::trainer
