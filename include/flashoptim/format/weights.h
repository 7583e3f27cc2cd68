// How a master weight is stored: 16 bits for forward and backward, and a correction. The native split is an
// integer split of the magnitude (docs/formats.md). The split of the paper is in format/paper.h.
//
// Every weight format has
//     Stored, Correction         types in memory; Correction is void if there is none
//     kDType                     of the stored weight, in a native format
//     kProtected                 whether a step saturates at the largest finite weight and does not change
//                                weights that are Inf or NaN
//     decode<L>(hi, lo)          the master weight; hi is zero-extended, lo sign-extended
//     encode<L>(w, dither, hi, lo)  the reverse, for a w that is not NaN; kNearestDither outside a step
//     is_special<L>(hi)          whether the stored weight is Inf or NaN
// A protected format also handles whole units of vectors (step/lanes/). They are for ordinary weights: the
// magnitude is not negative and less than kOrdinary.
//     decode_in_unit<L>(hi, lo, j)  vector j of the unit; other weights give NaN or at least kOrdinary
//     encode_unit<L>(w, dither, place, hi, lo)  dither from index `place` of DitherTables, or of a type with
//                                the same members
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

#include "flashoptim/dtype.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/dither.h"
#include "flashoptim/numeric/float16.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// The sign-magnitude grid of 31 bits whose upper 15 bits are a bfloat16 magnitude: fp32 itself.
struct Bfloat16Grid {
    static constexpr DType kDType = DType::kBFloat16;
    static constexpr std::uint32_t kMaxHigh = 0x7f7fU;
    static constexpr std::uint32_t kInfinityHigh = 0x7f80U;
    static constexpr std::uint32_t kNanHigh = 0x7fc0U;

    static constexpr float kOrdinary = 0x1p127F;  // a power of two inside the grid

    /// The sign and grid magnitude of an ordinary weight. value() is the reverse.
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt pattern(typename L::Float w) {
        return L::bits(w);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float value(typename L::UInt pattern) {
        return L::from_bits(pattern);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt magnitude(typename L::Float w) {
        return L::bits(w) & kMagnitudeBits;
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt value_bits(typename L::UInt magnitude) {
        return magnitude;
    }
    /// The 16-bit pattern nearest to a weight that is not negative, ties to even.
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt nearest_high(typename L::Float w) {
        const auto bits = L::bits(w);
        return (bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U;
    }
};

/// The grid of 31 bits whose upper 15 bits are a binary16 magnitude: 5 exponent bits and 26 fraction bits.
/// Its spacing below 2^-14 is 2^-40.
struct Float16Grid {
    static constexpr DType kDType = DType::kFloat16;
    static constexpr std::uint32_t kMaxHigh = 0x7bffU;
    static constexpr std::uint32_t kInfinityHigh = 0x7c00U;
    static constexpr std::uint32_t kNanHigh = 0x7e00U;
    static constexpr std::uint32_t kRebias = 0x38000000U;          // (127 - 15) << 23
    static constexpr std::uint32_t kSmallestNormal = 0x38800000U;  // 2^-14 as fp32
    static constexpr std::uint32_t kLargest = 0x477fffffU;  // the last fp32 below 2^16, where the grid ends

    static constexpr float kOrdinary = 0x1p15F;

    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt pattern(typename L::Float w) {
        return L::merge_bits(kSignBit, L::bits(w), magnitude<L>(w));
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float value(typename L::UInt pattern) {
        return L::from_bits(L::merge_bits(kSignBit, pattern, value_bits<L>(pattern & kMagnitudeBits)));
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt magnitude(typename L::Float w) {
        const auto mag = L::min_bits(L::bits(w) & kMagnitudeBits, L::broadcast_bits(kLargest));
        const auto normal = (mag - kRebias) << 3U;
        // Multiples of 2^-40, to nearest even. Floats from 2^23 on are integers, so the addition rounds to an
        // integer. A larger x is an integer already.
        const auto small = L::min_bits(mag, L::broadcast_bits(kSmallestNormal));
        const auto x = L::from_bits(small) * L::broadcast(0x1p40F);
        const auto rounded = (x + L::broadcast(0x1p23F)) - L::broadcast(0x1p23F);
        const auto integer = L::truncate(L::select(L::less(x, L::broadcast(0x1p23F)), rounded, x));
        const auto is_small = L::less_bits(mag, L::broadcast_bits(kSmallestNormal));
        return L::select_bits(is_small, integer, normal);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt value_bits(typename L::UInt magnitude) {
        constexpr std::uint32_t kFractionEnd = 1U << 26U;
        // fp32 has three fraction bits fewer than the grid: rounded to nearest even. The three bits are zero
        // in every pattern that magnitude() returns.
        const auto normal = ((magnitude + 3U + ((magnitude >> 3U) & 1U)) >> 3U) + kRebias;
        const auto small = L::bits(L::to_float(magnitude) * L::broadcast(0x1p-40F));
        const auto value =
            L::select_bits(L::less_bits(magnitude, L::broadcast_bits(kFractionEnd)), small, normal);
        const auto special = L::less_bits(L::broadcast_bits((kInfinityHigh << 16U) - 1U), magnitude);
        return L::select_bits(special, kInfinityBits | (((magnitude >> 16U) & 0x3ffU) << 13U), value);
    }
    /// The 16-bit pattern nearest to a weight that is not negative. It rounds from fp32, because magnitude()
    /// rounds below 2^-14 already and a second rounding would be wrong.
    template <class L>
    static FLASHOPTIM_INLINE typename L::UInt nearest_high(typename L::Float w) {
        return float_to_float16<L>(w);
    }
};

/// Master weights of 16 + `kBits` bits: `hi` is the rounded upper half of the magnitude, `lo` the remainder.
template <class Grid, int kBits, class CorrectionType>
struct SplitWeight {
    static constexpr DType kDType = Grid::kDType;
    using Stored = std::uint16_t;
    using Correction = CorrectionType;
    static constexpr bool kProtected = true;
    static constexpr int kShift = 16 - kBits;                  // grid bits below the correction
    static constexpr std::uint32_t kHalf = 1U << (kBits - 1);  // half a unit of hi, in units of lo
    static constexpr std::uint32_t kLargest = (Grid::kMaxHigh << kBits) + (kHalf - 1U);

    template <class L>
    static FLASHOPTIM_INLINE typename L::Mask is_special(typename L::UInt hi) {
        return L::less_bits(L::broadcast_bits(Grid::kInfinityHigh - 1U), hi & 0x7fffU);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode(typename L::UInt hi, typename L::UInt lo) {
        const auto high = (hi & 0x7fffU) << 16U;
        auto magnitude = high + (lo << static_cast<unsigned>(kShift));
        magnitude = L::select_bits(L::less_bits(L::broadcast_bits(kMagnitudeBits), magnitude),
                                   L::broadcast_bits(0U), magnitude);  // a negative magnitude becomes zero
        magnitude = L::select_bits(is_special<L>(hi), high, magnitude);
        return L::from_bits(Grid::template value_bits<L>(magnitude) | ((hi & 0x8000U) << 16U));
    }
    template <class L>
    static FLASHOPTIM_INLINE void encode(typename L::Float w, typename L::UInt dither, typename L::UInt& hi,
                                         typename L::UInt& lo) {
        auto q = Grid::template magnitude<L>(w);
        if constexpr (kShift != 0)
            q = (q + (dither >> static_cast<unsigned>(32 - kShift))) >> static_cast<unsigned>(kShift);
        q = L::min_bits(q, L::broadcast_bits(kLargest));
        const auto high = (q + kHalf) >> static_cast<unsigned>(kBits);
        lo = q - (high << static_cast<unsigned>(kBits));
        hi = high | ((L::bits(w) >> 16U) & 0x8000U);
    }

    static constexpr float kOrdinary = Grid::kOrdinary;
    /// A negative magnitude gives the pattern of a NaN, so that the weight does not count as ordinary.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode_in_unit(const Stored* hi, const Correction* lo, int j) {
        return Grid::template value<L>(L::load_joined(hi, lo, j));
    }
    template <class L, class Dither>
    static FLASHOPTIM_INLINE void encode_unit(const typename L::Float (&w)[L::kUnit], const Dither& dither,
                                              std::uint32_t place, Stored* hi, Correction* lo) {
        typename L::UInt sum[L::kUnit];
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) {
            auto offset = L::broadcast_bits(0x8000U);
            if constexpr (kBits == 8) offset = L::load_u32(dither.weight8.entry + place + j * L::kWidth);
            sum[j] = Grid::template pattern<L>(w[j]) + offset;
        }
        L::store_high_u16(hi, sum);
        // The bits of the sum below hi. They are half a unit too large, so the sign bit is inverted.
        if constexpr (kBits == 8) {
            L::template store_byte<8>(lo, sum, 0x80U);
        } else {
            L::store_low_u16(lo, sum, 0x8000U);
        }
    }
};

/// 16-bit weights without a correction. With kDithered they are rounded with dither, else to nearest even.
template <class Grid, bool kDithered>
struct PlainWeight {
    static constexpr DType kDType = Grid::kDType;
    using Stored = std::uint16_t;
    using Correction = void;
    static constexpr bool kProtected = true;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Mask is_special(typename L::UInt hi) {
        return L::less_bits(L::broadcast_bits(Grid::kInfinityHigh - 1U), hi & 0x7fffU);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode(typename L::UInt hi, typename L::UInt /*lo*/) {
        return L::from_bits(Grid::template value_bits<L>((hi & 0x7fffU) << 16U) | ((hi & 0x8000U) << 16U));
    }
    template <class L>
    static FLASHOPTIM_INLINE void encode(typename L::Float w, typename L::UInt dither, typename L::UInt& hi,
                                         typename L::UInt& /*lo*/) {
        typename L::UInt high;
        if constexpr (kDithered) {
            high = (Grid::template magnitude<L>(w) + (dither >> 16U)) >> 16U;
        } else {
            high = Grid::template nearest_high<L>(absolute<L>(w));
        }
        hi = L::min_bits(high, L::broadcast_bits(Grid::kMaxHigh)) | ((L::bits(w) >> 16U) & 0x8000U);
    }

    static constexpr float kOrdinary = Grid::kOrdinary;
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode_in_unit(const Stored* hi, const std::int8_t* /*lo*/,
                                                              int j) {
        return Grid::template value<L>(L::load_high_u16(hi, j));
    }
    template <class L, class Dither>
    static FLASHOPTIM_INLINE void encode_unit(const typename L::Float (&w)[L::kUnit], const Dither& dither,
                                              std::uint32_t place, Stored* hi, std::int8_t* /*lo*/) {
        typename L::UInt sum[L::kUnit];
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) {
            if constexpr (kDithered) {
                sum[j] = Grid::template pattern<L>(w[j]) +
                         L::load_u32(dither.weight16.entry + place + j * L::kWidth);
            } else {
                const auto high = Grid::template nearest_high<L>(absolute<L>(w[j]));
                sum[j] = L::merge_bits(kSignBit, L::bits(w[j]), high << 16U);
            }
        }
        L::store_high_u16(hi, sum);
    }
};

/// fp32 weights, which need no correction.
template <bool kProtect>
struct Float32Weight {
    static constexpr DType kDType = DType::kFloat32;
    using Stored = float;
    using Correction = void;
    static constexpr bool kProtected = kProtect;
    static constexpr std::uint32_t kLargest = 0x7f7fffffU;

    template <class L>
    static FLASHOPTIM_INLINE typename L::Mask is_special(typename L::UInt hi) {
        return L::less_bits(L::broadcast_bits(kLargest), hi & kMagnitudeBits);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode(typename L::UInt hi, typename L::UInt /*lo*/) {
        return L::from_bits(hi);
    }
    template <class L>
    static FLASHOPTIM_INLINE void encode(typename L::Float w, typename L::UInt /*dither*/,
                                         typename L::UInt& hi, typename L::UInt& /*lo*/) {
        hi = L::bits(w);
        if constexpr (kProtected) {
            hi = L::min_bits(hi & kMagnitudeBits, L::broadcast_bits(kLargest)) | (hi & kSignBit);
        }
    }

    static constexpr float kOrdinary = 0x1p127F;
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode_in_unit(const Stored* hi, const std::int8_t* /*lo*/,
                                                              int j) {
        return L::load_f32(hi + j * L::kWidth);
    }
    template <class L, class Dither>
    static FLASHOPTIM_INLINE void encode_unit(const typename L::Float (&w)[L::kUnit],
                                              const Dither& /*dither*/, std::uint32_t /*place*/, Stored* hi,
                                              std::int8_t* /*lo*/) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) L::store_f32(hi + j * L::kWidth, w[j]);
    }
};

using Bfloat16Weight24 = SplitWeight<Bfloat16Grid, 8, std::int8_t>;
using Bfloat16Weight32 = SplitWeight<Bfloat16Grid, 16, std::int16_t>;
using Bfloat16WeightDithered = PlainWeight<Bfloat16Grid, true>;
using Bfloat16WeightNearest = PlainWeight<Bfloat16Grid, false>;
using Float16Weight24 = SplitWeight<Float16Grid, 8, std::int8_t>;
using Float16Weight32 = SplitWeight<Float16Grid, 16, std::int16_t>;
using Float16WeightDithered = PlainWeight<Float16Grid, true>;
using Float16WeightNearest = PlainWeight<Float16Grid, false>;
using NativeFloat32Weight = Float32Weight<true>;
using PaperFloat32Weight = Float32Weight<false>;

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
