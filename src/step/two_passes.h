// The types of the kernels of a step in two passes. The first pass is the fused kernel with directions in
// place of weights. The second is the fused kernel of a rule without moments whose gradient is the direction.
// So both give the bits of the fused step.
#pragma once

#include <cstdint>
#include <cstring>

#include "flashoptim/format/native_states.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/rule/rules.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Directions as a weight format. With kOverWeights the memory holds fp32 master weights, which are read and
/// overwritten. Otherwise it is only written.
template <bool kOverWeights>
struct Directions {
    using Stored = float;
    using Correction = void;
    static constexpr bool kIsDirection = true;
    static constexpr bool kProtected = true;
    static constexpr float kOrdinary = 0x1p127F;

    /// Never special: where weights are read, an Inf or NaN weight makes the gradient bad.
    template <class L>
    static FLASHOPTIM_INLINE typename L::Mask is_special(typename L::UInt /*hi*/) {
        return L::from_mask_bits(L::broadcast_bits(0U));
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode(typename L::UInt hi, typename L::UInt /*lo*/) {
        if constexpr (kOverWeights) return L::from_bits(hi);
        return L::broadcast(0.0F);
    }
    template <class L>
    static FLASHOPTIM_INLINE void encode(typename L::Float direction, typename L::UInt /*dither*/,
                                         typename L::UInt& hi, typename L::UInt& /*lo*/) {
        hi = L::bits(direction);
    }
    template <class L>
    static FLASHOPTIM_INLINE typename L::Float decode_in_unit(const Stored* hi, const std::int8_t* /*lo*/,
                                                              int j) {
        if constexpr (kOverWeights) return L::load_f32(hi + j * L::kWidth);
        return L::broadcast(0.0F);
    }
    template <class L, class Dither>
    static FLASHOPTIM_INLINE void encode_unit(const typename L::Float (&direction)[L::kUnit],
                                              const Dither& /*dither*/, std::uint32_t /*place*/, Stored* hi,
                                              std::int8_t* /*lo*/) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) L::store_f32(hi + j * L::kWidth, direction[j]);
    }
};

/// The second pass as a rule whose gradient is the direction.
struct UpdateRule : GradientWithoutDecay {
    using Moments = MomentList<>;
    static constexpr bool kDividesMoments = false;
    static constexpr bool kTakesDirections = true;

    template <class L, class Format>
    static FLASHOPTIM_INLINE typename L::Float direction(typename L::Float direction,
                                                         const OldMoments<L, Format, UpdateRule>& /*old*/,
                                                         NewMoments<L, UpdateRule>& /*next*/,
                                                         const StepScalars& /*k*/) {
        return direction;
    }
};

/// Rounds floats to bfloat16, to nearest even. A NaN stays a NaN.
template <class L>
void store_bfloat16(const float* from, std::uint16_t* to, std::int64_t count) {
    const std::int64_t whole = count / L::kWidth * L::kWidth;
    for (std::int64_t at = 0; at < whole; at += L::kWidth) {
        L::store_u16(to + at, float_to_bfloat16<L>(L::load_f32(from + at)));
    }
    if (whole == count) return;
    float last[L::kWidth] = {};
    std::uint16_t bits[L::kWidth];
    std::memcpy(last, from + whole, static_cast<std::size_t>(count - whole) * sizeof last[0]);
    L::store_u16(bits, float_to_bfloat16<L>(L::load_f32(last)));
    std::memcpy(to + whole, bits, static_cast<std::size_t>(count - whole) * sizeof bits[0]);
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA
