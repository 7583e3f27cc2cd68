// Instantiates the kernels of every rule and storage for one kind of lanes. Each backend file includes this
// once and names its lanes.
#pragma once

#include <type_traits>

#include "step/fast_kernel.h"
#include "step/kernel_types.h"
#include "step/reference_kernel.h"
#include "step/rows.h"
#include "step/two_passes.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

template <class L, class R, class M, class W>
constexpr Kernel step_kernel() {
    if constexpr (!std::is_same_v<L, ScalarLanes>) {
        return &FastKernel<L, R, M, W>::run;
    } else {
        return &ReferenceKernel<L, R, M, W>::run;
    }
}

template <class L, class R, class M, class W>
Kernels kernels_of() {
    Kernels kernels;
    kernels.run = step_kernel<L, R, M, W>();
    kernels.count_bad = &ReferenceKernel<L, R, M, W>::count_bad;
    if constexpr (kHasDirection<L, R, M>) {
        kernels.update_moments = step_kernel<L, R, M, Directions<false>>();
        kernels.replace_by_directions = step_kernel<L, R, M, Directions<true>>();
        kernels.apply_update = step_kernel<L, UpdateRule, Float32Moments, W>();
        kernels.decode_weights = &ReferenceKernel<L, UpdateRule, Float32Moments, W>::decode_weights;
    }
    return kernels;
}

template <class L>
Kernels find_kernels(Rule rule, const StoragePlan& plan) {
    return visit_kernel_types(rule, plan,
                              []<class R, class M, class W>() { return kernels_of<L, R, M, W>(); });
}

/// Sum of squares in double: kNormSums interleaved sums, added up in order. The element index alone decides
/// which sum an element belongs to, so the bits do not depend on the lanes' width. The square of a float is
/// exact in double. kChecked leaves out bad elements.
template <class L, bool kChecked>
double interleaved_sum_of_squares(const void* gradient, DType dtype, float factor, std::int64_t count) {
    constexpr int kChunk = 256, kLine = 64, kAhead = 4096;  // elements; bytes
    typename L::Doubles sums[kNormSums / L::kWidth] = {};
    alignas(64) float values[kChunk];
    const auto* from = static_cast<const std::byte*>(gradient);
    for (std::int64_t at = 0; at < count; at += kChunk) {
        const auto size = static_cast<int>(count - at < kChunk ? count - at : kChunk);
        const auto* chunk = from + at * static_cast<std::int64_t>(size_of(dtype));
        if (size == kChunk) {
            for (int line = 0; line < kChunk * static_cast<int>(size_of(dtype)); line += kLine) {
                __builtin_prefetch(chunk + kAhead + line);
            }
            read_gradient<L>(chunk, dtype, factor, kChunk, values);
        } else {
            alignas(64) std::byte padded[kChunk * 4] = {};
            std::memcpy(padded, chunk, static_cast<std::size_t>(size) * size_of(dtype));
            read_gradient<L>(padded, dtype, factor, kChunk, values);
        }
        for (int e = 0; e < kChunk; e += kNormSums) {
            FLASHOPTIM_UNROLL
            for (int n = 0; n < kNormSums; n += L::kWidth) {
                auto g = L::load_f32(values + e + n);
                if constexpr (kChecked) {
                    const auto is_good = L::less(absolute<L>(g), L::broadcast(0x1p48F));
                    g = L::select(is_good, g, L::broadcast(0.0F));
                }
                L::add_squares(g, sums[n / L::kWidth]);
            }
        }
    }
    double in_order[kNormSums];
    std::memcpy(in_order, sums, sizeof in_order);
    double total = 0.0;
    for (const double sum : in_order) total += sum;
    return total;
}

/// Sum of squares without bad elements. The square of a bad element is at least 2^96, so a smaller sum has
/// none and needs no second pass.
template <class L>
double sum_of_squares(const void* gradient, DType dtype, float factor, std::int64_t count) {
    const double sum = interleaved_sum_of_squares<L, false>(gradient, dtype, factor, count);
    return sum < 0x1p96 ? sum : interleaved_sum_of_squares<L, true>(gradient, dtype, factor, count);
}

template <class L>
BackendKernels backend_of() {
    return {&find_kernels<L>, &sum_of_squares<L>, &store_bfloat16<L>};
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA
