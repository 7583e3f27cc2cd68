// The seam between the list of tensors (step.cpp) and the kernels that the backends instantiate.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flashoptim/format/dither_tables.h"
#include "flashoptim/step.h"

namespace flashoptim {

/// Elements that a kernel works on between the passes over a block; one dither period, two
/// vectors of scales at most.
constexpr int kBlockSize = 512;
constexpr int kGroupsPerBlock = kBlockSize / static_cast<int>(kGroupSize);

/// A run of elements whose groups lie together, beginning with a group: a row, part of one, or
/// many that need no distinction.
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
    const Segment* following = nullptr;  // of the same kind, stepped next: for what is fetched ahead
    const StepScalars* scalars = nullptr;
    const DitherTables* dither = nullptr;
    // The scalar kernel, for what is out of the ordinary.
    std::uint64_t (*reference)(const Segment&) = nullptr;
};

/// A kernel returns the number of elements that it skipped.
using Kernel = std::uint64_t (*)(const Segment&);
/// Decodes the master weights of a segment into memory for whole groups.
using DecodeWeights = void (*)(const Segment&, float* masters);

/// What one backend offers for one rule and storage. Those of a step in two passes are null where the storage
/// is in the paper's order of operations.
struct Kernels {
    Kernel run = nullptr;        // steps
    Kernel count_bad = nullptr;  // changes nothing
    // New moments; in the place of fp32 weights stand directions, which the second replaces weights by. The
    // first does not look at weights.
    Kernel update_moments = nullptr;
    Kernel replace_by_directions = nullptr;
    Kernel apply_update = nullptr;  // the gradient is the direction
    DecodeWeights decode_weights = nullptr;
};

/// Rounds to bfloat16, to nearest even; a NaN stays one.
using StoreBfloat16 = void (*)(const float* from, std::uint16_t* to, std::int64_t count);

/// Sum of squares of a block of the gradient; the same bits from every backend.
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
