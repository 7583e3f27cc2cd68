// The descriptors of a list of tensors that the kernels read, as plain data for device memory, and
// DeviceTensorList, which builds them. No CUDA calls, so that the emulation in the tests uses the same code.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "flashoptim/cuda.h"
#include "step/kernels.h"
#include "step/rows.h"
#include "step/scalars.h"

namespace flashoptim::cuda {

/// Elements of one thread: 16 bytes of a bfloat16 weight.
constexpr int kElements = 8;
constexpr int kThreadsInGroup = static_cast<int>(kGroupSize) / kElements;
constexpr int kThreads = 256;
/// Groups that a thread block steps in one pass, and the most groups of its chunk.
constexpr int kGroupsInPass = kThreads / kThreadsInGroup;
constexpr int kMaxGroupsInChunk = 512;
/// About four times the thread blocks that an H200 runs at once (two on each of its 132 multiprocessors).
/// With fewer, many multiprocessors idle while the last blocks run.
constexpr std::int64_t kWantedChunks = 1024;

/// Groups in each chunk of a list: the largest power of two that gives kWantedChunks full chunks, but at
/// least one pass. No bit of the results depends on it.
constexpr int chunk_size(std::int64_t groups_in_list) {
    int groups = kMaxGroupsInChunk;
    while (groups > kGroupsInPass && groups_in_list / groups < kWantedChunks) groups /= 2;
    return groups;
}

/// One tensor. Element `column` of row `row` has the index row * row_length + column.
struct DeviceTensor {
    void* weight = nullptr;
    void* correction = nullptr;
    void* codes[kMaxMoments] = {};  // one for each moment
    std::uint16_t* scales[kMaxMoments] = {};
    const void* gradient = nullptr;
    std::int64_t numel = 0;
    std::int64_t rows = 0;
    std::int64_t row_length = 0;
    std::int64_t groups_in_row = 0;
    std::int64_t norm_begin = 0;   // index of its first block of the gradient norm, over all tensors
    std::uint32_t place = 0;       // index of the first element in the whole tensor, mod 512
    std::uint32_t row_places = 0;  // distance of two rows in the whole tensor, mod 512
    float gradient_factor = 1.0F;
    std::uint32_t kind = 0;
    DType gradient_dtype = DType::kFloat32;
    bool negates_gradient = false;
    bool checks_gradient = true;
    bool is_aligned =
        false;  // whether eight elements from any index that is a multiple of 8 can be read at once
    std::uint32_t padding = 0;

    bool operator==(const DeviceTensor&) const = default;
};

/// groups_in_chunk groups of one tensor, or fewer at its end.
struct Chunk {
    std::int64_t row = 0;
    std::uint32_t group = 0;  // index in the row
    std::uint32_t tensor = 0;
};

/// The inputs of the scalars of one kind: the index of its host values in the list of sources, and values in
/// device memory.
struct KindSource {
    ItemValues values;
    std::uint32_t source = 0;
    std::uint32_t padding = 0;

    bool operator==(const KindSource&) const = default;
};

/// The scalars of all tensors with equal rule, hyperparameters and step count.
struct Kind {
    StepScalars scalars;
    std::uint32_t step = 1;
};

/// The common values of one step, computed before its kernels run, and their count of bad gradients.
struct Control {
    float gradient_factor = 1.0F;
    std::uint32_t is_skipped = 0;     // not 0: found_inf is set
    std::uint64_t bad_gradients = 0;  // counted by the counting kernel
    std::uint64_t padding = 0;
};

/// The argument of a kernel: a launch has `chunk_count` thread blocks, one for each chunk.
struct Launch {
    const Chunk* chunks = nullptr;
    const DeviceTensor* tensors = nullptr;
    const Kind* kinds = nullptr;
    Control* control = nullptr;
    std::uint64_t* bad_elements = nullptr;  // one for each tensor
    std::uint32_t chunk_count = 0;
    int groups_in_chunk = kMaxGroupsInChunk;
    bool stops_at_bad_gradients = false;  // nothing is written if the counting kernel found any
};

/// The functions that launch and preload the kernels of one rule and storage.
using Launcher = cudaError_t (*)(const Launch& launch, void* stream);
using Loader = cudaError_t (*)();
struct Launchers {
    Launcher step = nullptr;
    Launcher count_bad = nullptr;
    Loader load_step = nullptr;
    Loader load_count = nullptr;
    bool operator==(const Launchers&) const = default;
};
using FindLaunchers = Launchers (*)(Rule rule, const StoragePlan& plan);

/// The chunks [begin, begin + count), which the same kernels step.
struct LaunchRange {
    Launchers launchers;
    std::uint32_t begin = 0;
    std::uint32_t count = 0;
};

class DeviceTensorList {
public:
    /// Replaces the list by `items` and their values in device memory, which may be empty. If no size and no
    /// storage has changed, the chunks are kept. If it throws, the list is as before.
    /// @throws InvalidArgument for a missing buffer, a row that is too long, or values of another length.
    void set(std::span<const StepItem> items, std::span<const ItemValues> values, FindLaunchers find);

    [[nodiscard]] const std::vector<DeviceTensor>& tensors() const { return list_.tensors; }
    [[nodiscard]] const std::vector<Chunk>& chunks() const { return cut_.chunks; }
    [[nodiscard]] int groups_in_chunk() const { return cut_.groups_in_chunk; }
    [[nodiscard]] const std::vector<ScalarSource>& sources() const { return list_.sources; }
    [[nodiscard]] const std::vector<KindSource>& kinds() const { return list_.kinds; }
    /// The step counters in device memory that belong to single items: each once, sorted.
    [[nodiscard]] const std::vector<std::int64_t*>& step_counts() const { return list_.step_counts; }
    [[nodiscard]] const std::vector<LaunchRange>& ranges() const { return cut_.ranges; }
    /// Whether the last call of set() changed tensors, kinds or step counters. chunks_changed() says the same
    /// of the chunks and their size.
    [[nodiscard]] bool tensors_changed() const { return tensors_changed_; }
    [[nodiscard]] bool chunks_changed() const { return chunks_changed_; }
    /// Number of blocks of the gradient norm, over all tensors.
    [[nodiscard]] std::int64_t norm_blocks() const { return list_.norm_blocks; }

private:
    /// Data that depends on the items.
    struct List {
        std::vector<DeviceTensor> tensors;
        std::vector<Launchers> launchers;  // one for each tensor
        std::vector<ScalarSource> sources;
        std::vector<KindSource> kinds;
        std::vector<std::int64_t*> step_counts;
        std::int64_t norm_blocks = 0;

        void clear();
        std::uint32_t kind_of(const ScalarSource& source, const ItemValues& values);
        void set_step_counts(std::span<const ItemValues> values);
    };
    /// The division of the tensors among thread blocks.
    struct Cut {
        std::vector<Chunk> chunks;
        std::vector<LaunchRange> ranges;
        int groups_in_chunk = kMaxGroupsInChunk;

        void set(const List& list);
    };

    // The next data is built beside the current data and swapped in when nothing can throw any more. Both
    // keep their memory.
    List list_, next_list_;
    Cut cut_, next_cut_;
    bool tensors_changed_ = false, chunks_changed_ = false;
};

}  // namespace flashoptim::cuda
