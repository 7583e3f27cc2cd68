// Lanes of 16 floats in AVX-512 with VBMI, whose byte permutes read and write units of 64 elements.
#pragma once

#include "flashoptim/format/native_states.h"
#include "step/lanes/avx512.h"

namespace flashoptim {

/// Where each byte comes from.
struct VbmiPlaces {
    alignas(64) std::uint8_t joined[4][64], spread[4][64], paired[4][64], every_fourth[64], unmixed[64];
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
            p.spread[j][4 * lane] = static_cast<std::uint8_t>(e);
            p.paired[j][4 * lane + 2] = static_cast<std::uint8_t>(e);
            p.paired[j][4 * lane + 3] = static_cast<std::uint8_t>(64 + e);
            p.unmixed[e] = static_cast<std::uint8_t>(lane / 2 * 8 + 2 * j + lane % 2);
        }
    }
    for (int e = 0; e < 64; ++e) p.every_fourth[e] = static_cast<std::uint8_t>(4 * (e % 32));
    return p;
}
inline constexpr VbmiPlaces kVbmiPlaces = make_vbmi_places();

struct Avx512VbmiLanes : Avx512Lanes {
    static constexpr bool kHasByteTables = true;

    using Avx512Lanes::load_joined;
    static FLASHOPTIM_INLINE void load_joined(const std::uint16_t* high, const std::int8_t* low,
                                              UInt (&to)[kUnit]) {
        // The correction with its sign bit inverted is the correction plus 128.
        const __m512i biased = _mm512_xor_si512(_mm512_loadu_si512(low), _mm512_set1_epi8(-128));
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; ++j) {
            const __m512i words = _mm512_loadu_si512(high + j / 2 * 32);
            const __m512i places = _mm512_load_si512(kVbmiPlaces.joined[j]);
            const __m512i joined = _mm512_maskz_permutex2var_epi8(0xEEEEEEEEEEEEEEEEU, words, places, biased);
            to[j] = uint(joined) - 0x8000U;
        }
    }
    static FLASHOPTIM_INLINE void load_u8_over(std::uint32_t base, const std::uint8_t* p, UInt (&to)[kUnit]) {
        const __m512i bytes = _mm512_loadu_si512(p);
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; ++j) {
            to[j] = uint(_mm512_mask_permutexvar_epi8(_mm512_set1_epi32(static_cast<int>(base)),
                                                      0x1111111111111111U, _mm512_load_si512(kVbmiPlaces.spread[j]), bytes));
        }
    }
    /// sign(c) * the table's value at |c|; c is not -128.
    static FLASHOPTIM_INLINE void look_up(const std::int8_t* codes, const SignedByteTable& table,
                                          Float (&to)[kUnit]) {
        const __m512i signs = _mm512_loadu_si512(codes), places = _mm512_abs_epi8(signs);
        const auto find = [&](const std::uint8_t* bytes) __attribute__((always_inline)) {
            return _mm512_permutex2var_epi8(_mm512_load_si512(bytes), places, _mm512_load_si512(bytes + 64));
        };
        const __m512i low = find(table.low);
        const __m512i high =
            _mm512_ternarylogic_epi32(find(table.high), signs, _mm512_set1_epi8(-128), 0xF8);  // | sign
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; ++j) {
            to[j] = from_bits(uint(_mm512_maskz_permutex2var_epi8(0xCCCCCCCCCCCCCCCCU, low,
                                                                  _mm512_load_si512(kVbmiPlaces.paired[j]), high)));
        }
    }
    template <int kShift>
    static FLASHOPTIM_INLINE void store_byte(void* p, const UInt (&from)[kUnit], std::uint32_t flip) {
        __m512i bytes;
        if constexpr (kShift % 8 == 0) {
            const __m512i places = _mm512_add_epi8(_mm512_load_si512(kVbmiPlaces.every_fourth), _mm512_set1_epi8(kShift / 8));
            bytes = _mm512_mask_blend_epi32(0xFF00, _mm512_permutex2var_epi8(raw(from[0]), places, raw(from[1])),
                                            _mm512_permutex2var_epi8(raw(from[2]), places, raw(from[3])));
        } else {
            // Bytes 2j and 2j + 1 of each quadword from its two lanes of vector j.
            __m512i mixed{};
            FLASHOPTIM_UNROLL
            for (int j = 0; j < kUnit; ++j) {
                const __m512i shifts =
                    _mm512_set1_epi64(static_cast<long long>(std::uint64_t{kShift | (32 + kShift) << 8} << (16 * j)));
                mixed = _mm512_mask_multishift_epi64_epi8(mixed, 0x0303030303030303U << (2 * j), shifts, raw(from[j]));
            }
            bytes = _mm512_permutexvar_epi8(_mm512_load_si512(kVbmiPlaces.unmixed), mixed);
        }
        _mm512_storeu_si512(p, _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(flip))));
    }
};

}  // namespace flashoptim
