// The interface between the list of tensors (step.cpp) and the kernels of the backends.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flashoptim/format/dither_tables.h"
#include "flashoptim/step.h"

namespace flashoptim {

/// Elements of a block. It is one dither period, and its scales fill at most two vectors.
constexpr int kBlockSize = 512;
constexpr int kGroupsPerBlock = kBlockSize / static_cast<int>(kGroupSize);

/// A run of elements whose groups are contiguous. It begins with a group. It is a row, a part of a row, or
/// several rows that need no distinction.
struct Segment {
    void* weight = nullptr;
    void* correction = nullptr;
    void* codes[kMaxMoments] = {};  // of each moment
    std::uint16_t* scales[kMaxMoments] = {};
    const void* gradient = nullptr;
    DType gradient_dtype = DType::kFloat32;
    float gradient_factor = 1.0F;
    void* direction = nullptr;
    DType direction_dtype = DType::kFloat32;
    bool check_gradient = true;
    std::uint32_t place = 0;  // index of the first element in the whole tensor mod 512
    std::int64_t count = 0;
    const Segment* following = nullptr;  // the segment of the same kind that is stepped next, for prefetching
    const StepScalars* scalars = nullptr;
    const DitherTables* dither = nullptr;
    // The reference kernel, for blocks that are not ordinary.
    std::uint64_t (*reference)(const Segment&) = nullptr;
};

/// A kernel returns the number of elements that it skipped.
using Kernel = std::uint64_t (*)(const Segment&);
/// Decodes the master weights of a segment. `masters` has room for whole groups.
using DecodeWeights = void (*)(const Segment&, float* masters);

/// The kernels of one backend for one rule and storage. The kernels of a step in two passes are null if the
/// storage uses the paper's order of operations.
struct Kernels {
    Kernel run = nullptr;        // steps
    Kernel count_bad = nullptr;  // changes nothing
    // Both compute new moments and write directions at Segment::weight. update_moments does not read weights.
    // replace_by_directions reads fp32 master weights there and overwrites them with directions.
    Kernel update_moments = nullptr;
    Kernel replace_by_directions = nullptr;
    Kernel apply_update = nullptr;  // Segment::gradient holds the direction
    DecodeWeights decode_weights = nullptr;
};

/// Rounds floats to bfloat16, to nearest even. A NaN stays a NaN.
using StoreBfloat16 = void (*)(const float* from, std::uint16_t* to, std::int64_t count);

/// Sum of squares of a part of a gradient, without bad elements. Every backend gives the same bits.
using SumOfSquares = double (*)(const void* gradient, DType dtype, float factor, std::int64_t count);

struct BackendKernels {
    Kernels (*find)(Rule rule, const StoragePlan& plan) = nullptr;
    SumOfSquares sum_of_squares = nullptr;
    StoreBfloat16 store_bfloat16 = nullptr;
};

BackendKernels scalar_backend();
BackendKernels portable_backend();
#if defined(FLASHOPTIM_X86)
BackendKernels avx2_backend();
BackendKernels avx512_backend();
BackendKernels avx512_vbmi_backend();
#endif
#if defined(FLASHOPTIM_NEON)
BackendKernels neon_backend();
#endif

}  // namespace flashoptim
