// Lanes of 4 floats in NEON of 64-bit ARM. They replace the operations of PortableLanes for which the
// compiler's code is slow.
#pragma once

#include <arm_neon.h>

#include "step/lanes/portable.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

struct NeonLanes : PortableLanes<4, NeonLanes> {
    static constexpr bool kHasFastFma = true;

    static FLASHOPTIM_INLINE Float fma(Float a, Float b, Float c) {
        return reinterpret_cast<Float>(vfmaq_f32(raw(c), raw(a), raw(b)));
    }
    static FLASHOPTIM_INLINE Float sqrt(Float a) { return reinterpret_cast<Float>(vsqrtq_f32(raw(a))); }
    static FLASHOPTIM_INLINE UInt floor_to_integer(Float x) {
        return uint(vreinterpretq_u32_s32(vcvtmq_s32_f32(raw(x))));
    }
    static FLASHOPTIM_INLINE bool any(Mask a) { return vmaxvq_u32(reinterpret_cast<uint32x4_t>(a)) != 0; }
    static FLASHOPTIM_INLINE UInt min_bits(UInt a, UInt b) { return uint(vminq_u32(raw(a), raw(b))); }
    static FLASHOPTIM_INLINE UInt max_bits(UInt a, UInt b) { return uint(vmaxq_u32(raw(a), raw(b))); }
    static FLASHOPTIM_INLINE UInt merge_bits(std::uint32_t mask, UInt yes, UInt no) {
        return uint(vbslq_u32(vdupq_n_u32(mask), raw(yes), raw(no)));
    }
    static FLASHOPTIM_INLINE UInt row_maxima(const std::uint32_t (*rows)[4]) {
        const uint32x4_t a = vpmaxq_u32(vld1q_u32(rows[0]), vld1q_u32(rows[1])),
                         b = vpmaxq_u32(vld1q_u32(rows[2]), vld1q_u32(rows[3]));
        return uint(vpmaxq_u32(a, b));
    }
    static FLASHOPTIM_INLINE void store_high_u16(std::uint16_t* p, const UInt (&from)[kUnit]) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) {
            vst1q_u16(p + at(j), vuzp2q_u16(vreinterpretq_u16_u32(raw(from[j])),
                                            vreinterpretq_u16_u32(raw(from[j + 1]))));
        }
    }
    template <int kShift>
    static FLASHOPTIM_INLINE void store_byte(void* p, const UInt (&from)[kUnit], std::uint32_t flip) {
        const auto words = [&](int j) __attribute__((always_inline)) {
            return vuzp1q_u16(vreinterpretq_u16_u32(raw(from[j] >> static_cast<unsigned>(kShift))),
                              vreinterpretq_u16_u32(raw(from[j + 1] >> static_cast<unsigned>(kShift))));
        };
        const uint8x16_t bytes = vuzp1q_u8(vreinterpretq_u8_u16(words(0)), vreinterpretq_u8_u16(words(2)));
        vst1q_u8(static_cast<std::uint8_t*>(p), veorq_u8(bytes, vdupq_n_u8(static_cast<std::uint8_t>(flip))));
    }

private:
    static FLASHOPTIM_INLINE float32x4_t raw(Float x) { return reinterpret_cast<float32x4_t>(x); }
    static FLASHOPTIM_INLINE uint32x4_t raw(UInt x) { return reinterpret_cast<uint32x4_t>(x); }
    static FLASHOPTIM_INLINE UInt uint(uint32x4_t x) { return reinterpret_cast<UInt>(x); }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
