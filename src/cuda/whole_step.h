// The work that is done once per step by few threads: scalars and the decision to skip before the kernels,
// the advance of step counters after them, and the gradient norm.
#pragma once

#include "cuda/words.h"
#include "flashoptim/numeric/bfloat16.h"

// Unrolled, so that several loads are in flight at once.
#if defined(__CUDA_ARCH__)
#define FLASHOPTIM_UNROLL_LOADS _Pragma("unroll 8")
#else
#define FLASHOPTIM_UNROLL_LOADS
#endif

namespace flashoptim::cuda {

/// The most host values in one launch. They are passed as the kernel's argument, which has at most 4 KiB; 128
/// bytes of these are the other members of Preparation.
constexpr int kSourcesInLaunch = static_cast<int>((4096 - 128) / sizeof(ScalarSource));
constexpr int kNormBlocksInBlock = kThreads / kNormSums;

/// Values in device memory that a step reads when it runs. Each may be null.
struct DeviceSources {
    const std::int64_t* steps_done = nullptr;
    const double* learning_rate = nullptr;
    const float* grad_scale = nullptr;
    const float* clip_coefficient = nullptr;
    const float* found_inf = nullptr;
};

/// The inputs of the scalars of all kinds with a source in [first_source, first_source + source_count).
struct Preparation {
    ScalarSource sources[kSourcesInLaunch];
    std::uint32_t first_source = 0;
    std::uint32_t source_count = 0;
    std::uint32_t kind_count = 0;
    const KindSource* kinds = nullptr;
    Kind* to = nullptr;
    Control* control = nullptr;
    DeviceSources from;
};

/// count + more, saturated at the largest number.
FLASHOPTIM_INLINE std::int64_t saturated_steps(std::int64_t count, std::int64_t more) {
    constexpr std::int64_t kMost = INT64_MAX;
    return more > 0 && count > kMost - more ? kMost : count + more;
}

/// Computes the scalars of kind n.
FLASHOPTIM_INLINE void prepare_kind(const Preparation& p, std::uint32_t n) {
    const KindSource& kind = p.kinds[n];
    const auto place = kind.source - p.first_source;
    if (place >= p.source_count) return;  // of another launch
    ScalarSource source = p.sources[place];
    const auto* const steps_done =
        kind.values.steps_done != nullptr ? kind.values.steps_done : p.from.steps_done;
    if (steps_done != nullptr) {
        source.step = saturated_steps(source.step, *steps_done);
        source.has_momentum = source.has_momentum || source.step - 1 > kind.values.unfilled_at;
    }
    const auto* const learning_rate =
        kind.values.learning_rate != nullptr ? kind.values.learning_rate : p.from.learning_rate;
    if (learning_rate != nullptr) source.hyperparameters.learning_rate = *learning_rate;
    p.to[n].scalars = scalars_of(source);
    p.to[n].step = static_cast<std::uint32_t>(source.step);
}
/// Computes the Control of the step. Its counter starts at zero.
FLASHOPTIM_INLINE void prepare_control(const Preparation& p) {
    Control control;
    if (p.from.grad_scale != nullptr) {
        control.gradient_factor = ScalarLanes::divide(1.0F, *p.from.grad_scale);
    }
    if (p.from.clip_coefficient != nullptr) control.gradient_factor *= *p.from.clip_coefficient;
    control.is_skipped = p.from.found_inf != nullptr && *p.from.found_inf != 0.0F ? 1 : 0;
    *p.control = control;
}

/// The step counters in device memory that a step advances.
struct Advance {
    std::int64_t* const* counts = nullptr;
    std::uint32_t count = 0;
    bool stops_at_bad_gradients = false;
    std::int64_t* steps_done = nullptr;  // counter of the whole list, or null
    const Control* control = nullptr;
};

/// Advances counter n unless the step was skipped. The number after the last one means the list's counter.
FLASHOPTIM_INLINE void advance(const Advance& a, std::uint32_t n) {
    const bool stopped = a.stops_at_bad_gradients && a.control->bad_gradients != 0;
    if (a.control->is_skipped != 0 || stopped) return;
    if (n < a.count) {
        *a.counts[n] = saturated_steps(*a.counts[n], 1);
    } else if (n == a.count && a.steps_done != nullptr) {
        *a.steps_done = saturated_steps(*a.steps_done, 1);
    }
}

/// The input of the gradient norm: blocks of kNormBlock elements, numbered over all tensors in list order.
struct NormLaunch {
    const DeviceTensor* tensors = nullptr;
    std::int64_t tensor_count = 0;
    std::int64_t blocks = 0;
    const Control* control = nullptr;
    double* sums = nullptr;  // one for each block
};

/// The tensor of a block: the last one that begins at or before it.
FLASHOPTIM_INLINE const DeviceTensor& tensor_of_norm_block(const NormLaunch& launch, std::int64_t block) {
    std::int64_t low = 0, high = launch.tensor_count;
    while (high - low > 1) {
        const auto middle = (low + high) / 2;
        (launch.tensors[middle].norm_begin <= block ? low : high) = middle;
    }
    return launch.tensors[low];
}

/// Partial sum `part` of a block: the elements part, part + kNormSums, ... (sum_of_squares() in
/// step/instantiate.h).
FLASHOPTIM_INLINE double norm_part(const NormLaunch& launch, std::int64_t block, int part) {
    const DeviceTensor& t = tensor_of_norm_block(launch, block);
    const float factor = t.gradient_factor * launch.control->gradient_factor;
    const auto begin = (block - t.norm_begin) * kNormBlock;
    const auto left = t.numel - begin;
    const auto size = static_cast<int>(left < kNormBlock ? left : kNormBlock);
    const auto add = [&](double& sum, float g) {
        g *= factor;
        const double x = is_bad_gradient(g) ? 0.0 : static_cast<double>(g);
        sum += x * x;
    };
    double sum = 0.0;
    if (t.gradient_dtype == DType::kFloat32) {
        const auto* from = static_cast<const float*>(t.gradient) + begin;
        FLASHOPTIM_UNROLL_LOADS
        for (int e = part; e < size; e += kNormSums) add(sum, from[e]);
    } else {
        const auto* from = static_cast<const std::uint16_t*>(t.gradient) + begin;
        const bool is_bfloat16 = t.gradient_dtype == DType::kBFloat16;
        FLASHOPTIM_UNROLL_LOADS
        for (int e = part; e < size; e += kNormSums) {
            const std::uint32_t bits = from[e];
            add(sum, is_bfloat16 ? bfloat16_to_float<CudaLanes>(bits) : float16_to_float<CudaLanes>(bits));
        }
    }
    return sum;
}

/// Total n: the sums of the blocks n, n + kNormTotals, ...
FLASHOPTIM_INLINE double norm_total(const NormLaunch& launch, int n) {
    double total = 0.0;
    FLASHOPTIM_UNROLL_LOADS
    for (std::int64_t block = n; block < launch.blocks; block += kNormTotals) total += launch.sums[block];
    return total;
}
/// The sum of partial sums or totals, added in order.
FLASHOPTIM_INLINE double added_up(const double* parts, int count) {
    double total = 0.0;
    for (int n = 0; n < count; ++n) total += parts[n];
    return total;
}

}  // namespace flashoptim::cuda
