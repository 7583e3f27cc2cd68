// The eight elements of a chunk that a thread steps, and where they lie.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/tensor_list.h"
#include "flashoptim/numeric/dither.h"
#include "step/block.h"

namespace flashoptim::cuda {

/// The eight elements of a thread. Indices count from the beginning of its chunk.
struct Run {
    unsigned element = 0;     // index of the first element
    unsigned group = 0;       // index of their group
    std::uint32_t place = 0;  // dither place of the first element
    int count = 0;            // number of elements, at most 8
    int count_in_group = 0;   // elements of the group; 0 or less: there is no group
    bool is_whole = false;    // whether one access can read or write all eight
};

/// A chunk of a tensor. The pointers of `t` point to the chunk's first element.
struct ChunkView {
    DeviceTensor t;
    int groups = 0;      // number of groups in the chunk
    int row_left = 0;    // elements from the chunk's begin to the end of its first row
    int row_length = 0;  // length of the other rows, in elements; groups_in_row in groups
    std::uint32_t groups_in_row = 0;
    std::uint32_t row_place = 0;  // dither place of the beginning of the first row
    bool is_aligned = false;

    /// Each size is the bytes of one element of that buffer.
    FLASHOPTIM_INLINE ChunkView(const DeviceTensor& tensor, const Chunk& chunk, int groups_in_chunk,
                                int weight_size, int correction_size, const int (&code_sizes)[kMaxMoments])
        : t(tensor) {
        constexpr std::int64_t kFar = std::int64_t{1} << 30;  // larger than every chunk
        const std::int64_t column = static_cast<std::int64_t>(chunk.group) * kGroup;
        const std::int64_t begin = chunk.row * t.row_length + column;
        const std::int64_t group = chunk.row * t.groups_in_row + chunk.group;
        const auto left = t.rows * t.groups_in_row - group;
        groups = left < groups_in_chunk ? static_cast<int>(left) : groups_in_chunk;
        row_left = static_cast<int>(t.row_length - column < kFar ? t.row_length - column : kFar);
        row_length = static_cast<int>(t.row_length < kFar ? t.row_length : kFar);
        groups_in_row = static_cast<std::uint32_t>(t.groups_in_row < kFar ? t.groups_in_row : kFar);
        is_aligned = t.is_aligned && begin % kElements == 0;
        row_place = t.place + static_cast<std::uint32_t>(chunk.row) * t.row_places;
        t.place = row_place + static_cast<std::uint32_t>(column);
        t.weight = advanced(t.weight, begin * weight_size);
        t.correction = advanced(t.correction, begin * correction_size);
        FLASHOPTIM_UNROLL
        for (int n = 0; n < kMaxMoments; ++n) {
            t.codes[n] = advanced(t.codes[n], begin * code_sizes[n]);
            t.scales[n] = advanced(t.scales[n], group * 2);
        }
        t.gradient = advanced(t.gradient, begin * (t.gradient_dtype == DType::kFloat32 ? 4 : 2));
    }

    /// The run of a thread in the pass that begins with group `begin`. It is empty after the end of the
    /// chunk.
    [[nodiscard]] FLASHOPTIM_INLINE Run run_of(int begin, int thread) const {
        const int part = thread % kThreadsInGroup * kElements;
        Run run;
        const int ahead = begin + thread / kThreadsInGroup;
        const int column = ahead * kGroup;
        int left = row_left - column;
        run.group = static_cast<unsigned>(ahead);
        run.element = static_cast<unsigned>(column + part);
        run.place = t.place + run.element;
        if (left <= 0) {
            // A later row. Elements after the last row are after the end of the chunk too.
            const auto first_groups = static_cast<std::uint32_t>(row_left + kGroup - 1) / kGroup;
            const auto rest = run.group - first_groups;
            const auto row = static_cast<int>(rest / groups_in_row);
            const auto in_row = static_cast<int>(rest % groups_in_row) * kGroup;
            run.element = static_cast<unsigned>(row_left + row * row_length + in_row + part);
            run.place = row_place + static_cast<std::uint32_t>(row + 1) * t.row_places +
                        static_cast<std::uint32_t>(in_row + part);
            left = row_length - in_row;
        }
        run.place %= kDitherPeriod;
        if (ahead >= groups) left = 0;
        run.count_in_group = left;
        left -= part;
        run.count = left < 0 ? 0 : left < kElements ? left : kElements;
        run.is_whole = run.count == kElements && is_aligned && run.element % kElements == 0;
        return run;
    }

private:
    template <class T>
    static FLASHOPTIM_INLINE T* advanced(T* buffer, std::int64_t bytes) {
        if (buffer == nullptr) return nullptr;
        using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
        return reinterpret_cast<T*>(reinterpret_cast<Byte*>(buffer) + bytes);
    }
};

}  // namespace flashoptim::cuda
