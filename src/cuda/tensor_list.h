// What the kernels read about a list of tensors: plain data that lies in device memory, and how it is made
// from a list of items. No CUDA call lives here, so that the emulation in the tests reads the same.
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

/// Elements that one thread steps: 16 bytes of a bfloat16 weight.
constexpr int kElements = 8;
constexpr int kThreadsInGroup = static_cast<int>(kGroupSize) / kElements;
constexpr int kThreads = 256;
/// Groups that a block steps at a time, and at most in all: its chunk.
constexpr int kGroupsInPass = kThreads / kThreadsInGroup;
constexpr int kMaxGroupsInChunk = 512;
/// About four times the blocks that an H200 runs at a time, two on each of its 132 multiprocessors: with
/// fewer, many of them idle while the last blocks run.
constexpr std::int64_t kWantedChunks = 1024;

/// Groups of every chunk of a list that has this many: a power of two, the largest that leaves kWantedChunks
/// full chunks; one pass where none does. No bit depends on it.
constexpr int chunk_size(std::int64_t groups_in_list) {
    int groups = kMaxGroupsInChunk;
    while (groups > kGroupsInPass && groups_in_list / groups < kWantedChunks) groups /= 2;
    return groups;
}

/// One tensor. Element `column` of row `row` lies row * row_length + column behind the pointers.
struct DeviceTensor {
    void* weight = nullptr;
    void* correction = nullptr;
    void* codes[kMaxMoments] = {};  // of each moment
    std::uint16_t* scales[kMaxMoments] = {};
    const void* gradient = nullptr;
    std::int64_t numel = 0;
    std::int64_t rows = 0;
    std::int64_t row_length = 0;
    std::int64_t groups_in_row = 0;
    std::int64_t norm_begin = 0;   // its first block of the gradient norm, counted over all tensors
    std::uint32_t place = 0;       // of the first element: its index in the whole tensor mod 512
    std::uint32_t row_places = 0;  // from a row to the next, mod 512
    float gradient_factor = 1.0F;
    std::uint32_t kind = 0;
    DType gradient_dtype = DType::kFloat32;
    bool negates_gradient = false;
    bool checks_gradient = true;
    bool is_aligned =
        false;  // eight elements of every buffer can be read at once wherever their index is a multiple of 8
    std::uint32_t padding = 0;

    bool operator==(const DeviceTensor&) const = default;
};

/// The list's groups_in_chunk groups of one tensor, or what is left of it from there.
struct Chunk {
    std::int64_t row = 0;
    std::uint32_t group = 0;  // in the row
    std::uint32_t tensor = 0;
};

/// What the scalars of some tensors follow from: values of the host, by their place among the
/// sources, and in device memory.
struct KindSource {
    ItemValues values;
    std::uint32_t source = 0;
    std::uint32_t padding = 0;

    bool operator==(const KindSource&) const = default;
};

/// The scalars of all tensors with the same rule, hyperparameters and step count.
struct Kind {
    StepScalars scalars;
    std::uint32_t step = 1;
};

/// What one step computes before its kernels run, and what they count.
struct Control {
    float gradient_factor = 1.0F;
    std::uint32_t is_skipped = 0;     // by found_inf
    std::uint64_t bad_gradients = 0;  // of a counting launch
    std::uint64_t padding = 0;
};

/// A launch of one kernel: `chunk_count` blocks, one for each chunk.
struct Launch {
    const Chunk* chunks = nullptr;
    const DeviceTensor* tensors = nullptr;
    const Kind* kinds = nullptr;
    Control* control = nullptr;
    std::uint64_t* bad_elements = nullptr;  // of each tensor
    std::uint32_t chunk_count = 0;
    int groups_in_chunk = kMaxGroupsInChunk;
    bool stops_at_bad_gradients = false;  // where the counting launch found any, nothing is written
};

/// How the kernels for one rule and storage are started and, before, loaded.
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

/// Chunks [begin, begin + count) are stepped by the same kernels.
struct LaunchRange {
    Launchers launchers;
    std::uint32_t begin = 0;
    std::uint32_t count = 0;
};

class DeviceTensorList {
public:
    /// Takes over `items` with their values in device memory, which may be empty. Chunks are kept where no
    /// size and no storage has changed. Where it throws the list is as before.
    /// @throws InvalidArgument for a null pointer where a buffer must be, a row that is too long, or values
    ///         of another length.
    void set(std::span<const StepItem> items, std::span<const ItemValues> values, FindLaunchers find);

    [[nodiscard]] const std::vector<DeviceTensor>& tensors() const { return list_.tensors; }
    [[nodiscard]] const std::vector<Chunk>& chunks() const { return cut_.chunks; }
    [[nodiscard]] int groups_in_chunk() const { return cut_.groups_in_chunk; }
    [[nodiscard]] const std::vector<ScalarSource>& sources() const { return list_.sources; }
    [[nodiscard]] const std::vector<KindSource>& kinds() const { return list_.kinds; }
    /// Step counts in device memory that belong to single items, each once, in order.
    [[nodiscard]] const std::vector<std::int64_t*>& step_counts() const { return list_.step_counts; }
    [[nodiscard]] const std::vector<LaunchRange>& ranges() const { return cut_.ranges; }
    /// Whether the last call of set() changed tensors, kinds or step counts; the same of
    /// the chunks and their size.
    [[nodiscard]] bool tensors_changed() const { return tensors_changed_; }
    [[nodiscard]] bool chunks_changed() const { return chunks_changed_; }
    /// Blocks of the gradient norm of all tensors.
    [[nodiscard]] std::int64_t norm_blocks() const { return list_.norm_blocks; }

private:
    /// What follows from the items.
    struct List {
        std::vector<DeviceTensor> tensors;
        std::vector<Launchers> launchers;  // of each tensor
        std::vector<ScalarSource> sources;
        std::vector<KindSource> kinds;
        std::vector<std::int64_t*> step_counts;
        std::int64_t norm_blocks = 0;

        void clear();
        std::uint32_t kind_of(const ScalarSource& source, const ItemValues& values);
        void set_step_counts(std::span<const ItemValues> values);
    };
    /// How the tensors are shared out among blocks.
    struct Cut {
        std::vector<Chunk> chunks;
        std::vector<LaunchRange> ranges;
        int groups_in_chunk = kMaxGroupsInChunk;

        void set(const List& list);
    };

    // The next ones are made beside the present ones, which they replace when nothing can throw any
    // more. Both keep their memory.
    List list_, next_list_;
    Cut cut_, next_cut_;
    bool tensors_changed_ = false, chunks_changed_ = false;
};

}  // namespace flashoptim::cuda
