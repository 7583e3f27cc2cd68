// Visits fp32 patterns, splits each into weight and correction and back, and checks the promises of the
// native split on the way. A template over lanes, compiled once for each instruction set; nothing that is not
// inlined may stand here.
#pragma once

#include <cstdint>

#include "flashoptim/format/weights.h"
#include "flashoptim/numeric/dither.h"

namespace flashoptim::test {

struct SweepResult {
    std::uint64_t violations = 0;
    std::uint32_t first_bad = 0xffffffffU;
    std::uint64_t not_nearest = 0;  // stored weights that are not the nearest-even 16-bit value
};

enum class SplitKind : std::uint8_t { kBfloat16Of24, kBfloat16Of32, kFloat16Of24, kFloat16Of32 };

/// Visits the `vectors * kWidth` patterns first, first + stride, ...
using Sweep = SweepResult (*)(SplitKind kind, std::uint32_t first, std::uint64_t vectors,
                              std::uint32_t stride);
struct SweepKernel {
    Sweep sweep = nullptr;
    int width = 1;
};

SweepKernel scalar_sweep();
SweepKernel baseline_sweep();
#if defined(FLASHOPTIM_X86)
SweepKernel avx2_sweep();
SweepKernel avx512_sweep();
#endif

template <class L>
FLASHOPTIM_INLINE typename L::UInt difference(typename L::UInt a, typename L::UInt b) {
    return L::select_bits(L::less_bits(a, b), b - a, a - b);
}
template <class L>
FLASHOPTIM_INLINE typename L::Mask at_most_bits(typename L::UInt a, std::uint32_t limit) {
    return L::negate(L::less_bits(L::broadcast_bits(limit), a));
}
template <class L>
FLASHOPTIM_INLINE typename L::Mask at_most(typename L::Float a, typename L::Float limit) {
    return L::either(L::less(a, limit), L::equal(a, limit));
}
template <class L>
FLASHOPTIM_INLINE typename L::Mask implies(typename L::Mask premise, typename L::Mask conclusion) {
    return L::either(L::negate(premise), conclusion);
}

/// bfloat16: the grid is fp32's own, so distances between magnitudes are distances in units of fp32's last
/// place.
template <class L, int kBits>
struct Bfloat16Promise {
    using Scalar = Bfloat16Promise<ScalarLanes, kBits>;
    using UInt = typename L::UInt;
    using Mask = typename L::Mask;
    static constexpr std::uint32_t kUnit = kBits == 24 ? 0x100U : 1U;
    static constexpr std::uint32_t kLargest = 0x7f7f8000U - kUnit;  // 0x7f7f7f00 and 0x7f7f7fff
    static constexpr std::uint32_t kLastKept = kLargest + kUnit / 2 - (kBits == 24 ? 1U : 0U);

    static FLASHOPTIM_INLINE Mask kept(UInt pattern, UInt hi, UInt decoded) {
        const UInt magnitude = pattern & kMagnitudeBits, result = decoded & kMagnitudeBits;
        const Mask in_range = at_most_bits<L>(magnitude, kLastKept);
        const UInt high = hi & 0x7fffU;
        Mask ok = L::equal_bits(decoded & kSignBit, pattern & kSignBit);
        ok = L::both(ok, L::equal_bits((hi & 0x8000U) << 16U, pattern & kSignBit));
        // 32 bits: exact. 24 bits: within half a unit of the grid, 128 units of fp32's last place.
        ok = L::both(ok, implies<L>(in_range, at_most_bits<L>(difference<L>(magnitude, result), kUnit / 2)));
        // The stored weight: half a unit in its last place (0x8000), and with 24 bits half a unit of the grid
        // more from rounding twice: 0x8080 / 0x10000 = 0.50196 ulp.
        ok = L::both(ok, implies<L>(in_range, at_most_bits<L>(difference<L>(magnitude, high << 16U),
                                                              0x8000U + kUnit / 2)));
        // Beyond: saturated, never infinite.
        ok = L::both(ok, L::either(in_range, L::both(L::equal_bits(result, L::broadcast_bits(kLargest)),
                                                     L::equal_bits(high, L::broadcast_bits(0x7f7fU)))));
        if constexpr (kBits == 24) {
            // |error| <= 2^7 * 2^-23 * 2^e <= 2^-16 |x| = 1.526e-5 |x|; both sides are exact floats above
            // 2^-100.
            const auto x = absolute<L>(L::from_bits(pattern));
            const auto error = absolute<L>(L::from_bits(result) - x);
            const Mask normal = L::both(in_range, L::less_bits(L::broadcast_bits(0x0d800000U), magnitude));
            ok = L::both(ok, implies<L>(normal, at_most<L>(error, x * 0x1p-16F)));
        }
        return ok;
    }
    static FLASHOPTIM_INLINE Mask is_nearest(UInt pattern, UInt hi) {
        const auto nearest = float_to_bfloat16<L>(L::from_bits(pattern));
        // Where nearest-even gives infinity the split saturates by design.
        return L::either(L::equal_bits(nearest, hi),
                         L::equal_bits(nearest & 0x7fffU, L::broadcast_bits(0x7f80U)));
    }
};

/// binary16: 5 exponent and 26 fraction bits, spacing 2^-40 below 2^-14.
template <class L, int kBits>
struct Float16Promise {
    using Scalar = Float16Promise<ScalarLanes, kBits>;
    using UInt = typename L::UInt;
    using Mask = typename L::Mask;
    /// The last magnitude that is not saturated: e5m26 0x7bff7fff (32 bits), and 0x7bff7f7f, which still
    /// rounds to q = 0x7bff7f (24 bits), as fp32 patterns.
    static constexpr std::uint32_t kLastKept = kBits == 24 ? 0x477fefefU : 0x477fefffU;
    static constexpr float kCoarse = kBits == 24 ? 0x1p-9F : 0.0F;  // half a unit of the grid in ulps of hi

    static FLASHOPTIM_INLINE Mask kept(UInt pattern, UInt hi, UInt decoded) {
        const UInt magnitude = pattern & kMagnitudeBits;
        const Mask in_range = at_most_bits<L>(magnitude, kLastKept);
        const auto x = absolute<L>(L::from_bits(pattern));
        const auto error = absolute<L>(absolute<L>(L::from_bits(decoded)) - x);
        Mask ok = L::equal_bits(decoded & kSignBit, pattern & kSignBit);
        ok = L::both(ok, L::equal_bits((hi & 0x8000U) << 16U, pattern & kSignBit));
        if constexpr (kBits == 32) {
            // Exact from 2^-17, where fp32's own spacing is 2^-40; below within half of that.
            const Mask small = L::less(x, L::broadcast(0x1p-17F));
            ok = L::both(ok, implies<L>(small, at_most<L>(error, L::broadcast(0x1p-41F))));
            ok =
                L::both(ok, implies<L>(L::both(in_range, L::negate(small)), L::equal_bits(decoded, pattern)));
        } else {
            // A unit of q is 2^-18 of the binade, half of it 2^-19; below 2^-14 half a unit is 2^-33, and
            // bringing the value to the grid first costs up to 2^-41.
            const Mask small = L::less(x, L::broadcast(0x1p-14F));
            ok = L::both(ok, implies<L>(small, at_most<L>(error, L::broadcast(0x1p-33F + 0x1p-41F))));
            ok =
                L::both(ok, implies<L>(L::both(in_range, L::negate(small)), at_most<L>(error, x * 0x1p-19F)));
        }
        // The stored weight, in units of its last place (2^-24 for subnormals).
        const auto binade = L::from_bits(L::bits(x) & kInfinityBits);
        const auto ulp =
            L::select(L::less(binade, L::broadcast(0x1p-14F)), L::broadcast(0x1p-24F), binade * 0x1p-10F);
        const auto high_error = absolute<L>(float16_to_float<L>(hi & 0x7fffU) - x);
        ok = L::both(ok, implies<L>(in_range, at_most<L>(high_error, ulp * (0.5F + kCoarse) + 0x1p-41F)));
        ok = L::both(ok, L::either(in_range, L::equal_bits(hi & 0x7fffU, L::broadcast_bits(0x7bffU))));
        return ok;
    }
    static FLASHOPTIM_INLINE Mask is_nearest(UInt pattern, UInt hi) {
        const auto nearest = float_to_float16<L>(L::from_bits(pattern));
        return L::either(L::equal_bits(nearest, hi),
                         L::equal_bits(nearest & 0x7fffU, L::broadcast_bits(0x7c00U)));
    }
};

/// Which of the patterns break a promise, and which are stored as another than the nearest-even 16-bit value.
template <class L>
struct Findings {
    typename L::Mask bad, not_nearest;
};

template <class L, class W, class Promise>
FLASHOPTIM_INLINE Findings<L> check_patterns(typename L::UInt pattern) {
    using UInt = typename L::UInt;
    using Mask = typename L::Mask;
    constexpr int kUnused = 32 - 8 * static_cast<int>(sizeof(typename W::Correction));
    const UInt nearest = L::broadcast_bits(kNearestDither);
    // NaN never reaches the split: a step keeps it, a conversion stores its own pattern.
    const Mask is_number = at_most_bits<L>(pattern & kMagnitudeBits, kInfinityBits);
    UInt hi{}, lo{};
    W::template encode<L>(L::from_bits(pattern), nearest, hi, lo);
    // As memory holds them: 16 bits, and 8 or 16 with a sign.
    const UInt correction = L::shift_right_signed(lo << static_cast<unsigned>(kUnused), kUnused);
    Mask ok = L::both(L::equal_bits(correction, lo), at_most_bits<L>(hi, 0xffffU));
    const auto decoded = W::template decode<L>(hi, correction);
    ok = L::both(ok, Promise::kept(pattern, hi, L::bits(decoded)));
    // What was read back is written again without a change.
    UInt hi_again{}, lo_again{};
    W::template encode<L>(decoded, nearest, hi_again, lo_again);
    ok = L::both(ok, L::both(L::equal_bits(hi, hi_again), L::equal_bits(lo, lo_again)));
    return {L::both(is_number, L::negate(ok)),
            L::both(is_number, L::negate(Promise::is_nearest(pattern, hi)))};
}

template <class L, class W, class Promise>
SweepResult sweep_split(std::uint32_t first, std::uint64_t vectors, std::uint32_t stride) {
    using UInt = typename L::UInt;
    constexpr std::uint64_t kBlock = 1024;  // vectors between two looks at what was found
    const auto advance = static_cast<std::uint32_t>(L::kWidth) * stride;
    std::uint32_t lanes[L::kWidth];
    for (int lane = 0; lane < L::kWidth; ++lane)
        lanes[lane] = first + static_cast<std::uint32_t>(lane) * stride;
    UInt pattern = L::load_u32(lanes);
    SweepResult result;
    for (std::uint64_t done = 0; done < vectors; done += kBlock) {
        const auto size = vectors - done < kBlock ? vectors - done : kBlock;
        UInt bad = L::broadcast_bits(0U), not_nearest = L::broadcast_bits(0U);
        for (std::uint64_t n = 0; n < size; ++n, pattern += advance) {
            const auto found = check_patterns<L, W, Promise>(pattern);
            bad -= L::mask_bits(found.bad);  // a mask is -1 where it is set
            not_nearest -= L::mask_bits(found.not_nearest);
        }
        std::uint32_t bad_lanes[L::kWidth], other_lanes[L::kWidth];
        L::store_u32(bad_lanes, bad);
        L::store_u32(other_lanes, not_nearest);
        for (int lane = 0; lane < L::kWidth; ++lane) {
            result.violations += bad_lanes[lane];
            result.not_nearest += other_lanes[lane];
            if (bad_lanes[lane] == 0 || result.first_bad != 0xffffffffU) continue;
            const auto begin = first + static_cast<std::uint32_t>(done) * advance;
            for (std::uint32_t n = 0; n < kBlock; ++n) {
                const auto candidate = begin + n * advance + static_cast<std::uint32_t>(lane) * stride;
                if (check_patterns<ScalarLanes, W, typename Promise::Scalar>(candidate).bad) {
                    result.first_bad = candidate;
                    break;
                }
            }
        }
    }
    return result;
}

template <class L>
SweepResult sweep(SplitKind kind, std::uint32_t first, std::uint64_t vectors, std::uint32_t stride) {
    switch (kind) {
        case SplitKind::kBfloat16Of24:
            return sweep_split<L, Bfloat16Weight24, Bfloat16Promise<L, 24>>(first, vectors, stride);
        case SplitKind::kBfloat16Of32:
            return sweep_split<L, Bfloat16Weight32, Bfloat16Promise<L, 32>>(first, vectors, stride);
        case SplitKind::kFloat16Of24:
            return sweep_split<L, Float16Weight24, Float16Promise<L, 24>>(first, vectors, stride);
        case SplitKind::kFloat16Of32:
            return sweep_split<L, Float16Weight32, Float16Promise<L, 32>>(first, vectors, stride);
    }
    return {};
}

}  // namespace flashoptim::test
