// Lanes of 16 floats in AVX-512 with VBMI, whose byte permutes read and write units of 64 elements.
#pragma once

#include "step/lanes/avx512.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// Tables of the byte permutes: the source of each byte of the result.
struct VbmiPlaces {
    alignas(64) std::uint8_t joined[4][64], every_fourth[64], unmixed[64];
};
constexpr VbmiPlaces make_vbmi_places() {
    VbmiPlaces p{};
    FLASHOPTIM_UNROLL
    for (int j = 0; j < 4; ++j) {
        for (int lane = 0; lane < 16; ++lane) {
            const int e = 16 * j + lane;
            p.joined[j][4 * lane + 1] = static_cast<std::uint8_t>(64 + e);
            p.joined[j][4 * lane + 2] = static_cast<std::uint8_t>(2 * (e % 32));
            p.joined[j][4 * lane + 3] = static_cast<std::uint8_t>(2 * (e % 32) + 1);
            p.unmixed[e] = static_cast<std::uint8_t>(lane / 2 * 8 + 2 * j + lane % 2);
        }
    }
    for (int e = 0; e < 64; ++e) p.every_fourth[e] = static_cast<std::uint8_t>(4 * (e % 32));
    return p;
}
inline constexpr VbmiPlaces kVbmiPlaces = make_vbmi_places();

struct Avx512VbmiLanes : Avx512Lanes {
    using Avx512Lanes::load_joined;
    static FLASHOPTIM_INLINE UInt load_joined(const std::uint16_t* high, const std::int8_t* low, int j) {
        // Inverting the sign bit of a correction adds 128 to it.
        const __m512i biased = _mm512_xor_si512(_mm512_loadu_si512(low), _mm512_set1_epi8(-128));
        const __m512i words = _mm512_loadu_si512(high + at(j / 2 * 2));
        const __m512i places = _mm512_load_si512(kVbmiPlaces.joined[j]);
        return uint(_mm512_maskz_permutex2var_epi8(0xEEEEEEEEEEEEEEEEU, words, places, biased)) - 0x8000U;
    }
    template <int kShift>
    static FLASHOPTIM_INLINE void store_byte(void* p, const UInt (&from)[kUnit], std::uint32_t flip) {
        __m512i bytes;
        if constexpr (kShift % 8 == 0) {
            const __m512i places =
                _mm512_add_epi8(_mm512_load_si512(kVbmiPlaces.every_fourth), _mm512_set1_epi8(kShift / 8));
            bytes =
                _mm512_mask_blend_epi32(0xFF00, _mm512_permutex2var_epi8(raw(from[0]), places, raw(from[1])),
                                        _mm512_permutex2var_epi8(raw(from[2]), places, raw(from[3])));
        } else {
            // Bytes 2j and 2j + 1 of each quadword come from its two lanes of vector j.
            constexpr long long kShifts = kShift | (32 + kShift) << 8;
            __m512i mixed{};
            FLASHOPTIM_UNROLL
            for (int j = 0; j < kUnit; ++j) {
                const __m512i shifts = _mm512_set1_epi64(kShifts << (16 * j));
                mixed = _mm512_mask_multishift_epi64_epi8(mixed, 0x0303030303030303U << (2 * j), shifts,
                                                          raw(from[j]));
            }
            bytes = _mm512_permutexvar_epi8(_mm512_load_si512(kVbmiPlaces.unmixed), mixed);
        }
        _mm512_storeu_si512(p, _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(flip))));
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
