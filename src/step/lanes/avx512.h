// Lanes of 16 floats in AVX-512 (F, BW, DQ, VL). They replace the operations of PortableLanes for which the
// compiler's code is slow.
#pragma once

#include <immintrin.h>

#include "step/lanes/portable.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

struct Avx512Lanes : PortableLanes<16, Avx512Lanes> {
    using Mask = __mmask16;
    static constexpr bool kHasFastFma = true;

    static FLASHOPTIM_INLINE Float broadcast(float value) { return _mm512_set1_ps(value); }
    static FLASHOPTIM_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static FLASHOPTIM_INLINE Float sqrt(Float a) { return _mm512_sqrt_ps(a); }

    static FLASHOPTIM_INLINE Mask less(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
    static FLASHOPTIM_INLINE Mask equal(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
    static FLASHOPTIM_INLINE Mask less_bits(UInt a, UInt b) {
        return _mm512_cmplt_epu32_mask(raw(a), raw(b));
    }
    static FLASHOPTIM_INLINE Mask equal_bits(UInt a, UInt b) {
        return _mm512_cmpeq_epi32_mask(raw(a), raw(b));
    }
    static FLASHOPTIM_INLINE Mask negate(Mask a) { return static_cast<Mask>(~a); }
    static FLASHOPTIM_INLINE Mask both(Mask a, Mask b) { return a & b; }
    static FLASHOPTIM_INLINE Mask either(Mask a, Mask b) { return a | b; }
    static FLASHOPTIM_INLINE bool any(Mask a) { return a != 0; }
    static FLASHOPTIM_INLINE int count(Mask a) { return __builtin_popcount(a); }
    static FLASHOPTIM_INLINE UInt mask_bits(Mask a) { return uint(_mm512_movm_epi32(a)); }
    static FLASHOPTIM_INLINE Mask from_mask_bits(UInt a) { return _mm512_movepi32_mask(raw(a)); }

    static FLASHOPTIM_INLINE Float select(Mask m, Float yes, Float no) {
        return _mm512_mask_blend_ps(m, no, yes);
    }
    static FLASHOPTIM_INLINE UInt select_bits(Mask m, UInt yes, UInt no) {
        return uint(_mm512_mask_blend_epi32(m, raw(no), raw(yes)));
    }
    static FLASHOPTIM_INLINE UInt min_bits(UInt a, UInt b) { return uint(_mm512_min_epu32(raw(a), raw(b))); }
    static FLASHOPTIM_INLINE UInt max_bits(UInt a, UInt b) { return uint(_mm512_max_epu32(raw(a), raw(b))); }
    static FLASHOPTIM_INLINE UInt merge_bits(std::uint32_t mask, UInt yes, UInt no) {
        return uint(
            _mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int>(mask)), raw(yes), raw(no), 0xCA));
    }
    static FLASHOPTIM_INLINE Float smaller_magnitude(Float x, Float limit) {
        return _mm512_range_ps(x, limit, 0b00'10);  // the sign of x, the smaller magnitude
    }
    static FLASHOPTIM_INLINE Float max_ignoring_nan(Float a, Float b) { return _mm512_max_ps(b, a); }
    static FLASHOPTIM_INLINE Float max_magnitude(Float largest, Float x) {
        return _mm512_range_ps(largest, x, 0b10'11);  // no sign, the larger magnitude
    }
    static FLASHOPTIM_INLINE float horizontal_max(Float a) { return _mm512_reduce_max_ps(a); }

    // By intrinsics, because the compiler converts vectors of bytes and words element by element.
    static FLASHOPTIM_INLINE Float to_float(UInt x) { return _mm512_cvtepi32_ps(raw(x)); }
    static FLASHOPTIM_INLINE UInt truncate(Float x) { return uint(_mm512_cvttps_epi32(x)); }
    static FLASHOPTIM_INLINE UInt floor_to_integer(Float x) {
        return uint(_mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    }
    static FLASHOPTIM_INLINE UInt load_u16(const std::uint16_t* p) {
        return uint(_mm512_cvtepu16_epi32(load<__m256i>(p)));
    }
    static FLASHOPTIM_INLINE UInt load_i16(const std::int16_t* p) {
        return uint(_mm512_cvtepi16_epi32(load<__m256i>(p)));
    }
    static FLASHOPTIM_INLINE UInt load_i8(const std::int8_t* p) {
        return uint(_mm512_cvtepi8_epi32(load<__m128i>(p)));
    }
    static FLASHOPTIM_INLINE UInt load_u8(const std::uint8_t* p) {
        return uint(_mm512_cvtepu8_epi32(load<__m128i>(p)));
    }
    static FLASHOPTIM_INLINE void store_u16(std::uint16_t* p, UInt x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(raw(x)));
    }
    static FLASHOPTIM_INLINE void store_i16(std::int16_t* p, UInt x) {
        store_u16(reinterpret_cast<std::uint16_t*>(p), x);
    }
    static FLASHOPTIM_INLINE void store_u8(std::uint8_t* p, UInt x) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(raw(x)));
    }
    static FLASHOPTIM_INLINE void store_i8(std::int8_t* p, UInt x) {
        store_u8(reinterpret_cast<std::uint8_t*>(p), x);
    }

    static FLASHOPTIM_INLINE void add_squares(Float x, Doubles& sums) {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
        sums.half[0] = _mm512_fmadd_pd(low, low, sums.half[0]);
        sums.half[1] = _mm512_fmadd_pd(high, high, sums.half[1]);
    }

    /// Reduces in four rounds. Each round combines two registers of partial maxima into one.
    static FLASHOPTIM_INLINE UInt row_maxima(const std::uint32_t (*rows)[16]) {
        const auto row = [&](int n) __attribute__((always_inline)) { return _mm512_load_si512(rows[n]); };
        const auto halves = [](__m512i a, __m512i b) __attribute__((always_inline)) {
            return _mm512_max_epu32(_mm512_mask_blend_epi32(0xFF00, a, b), _mm512_shuffle_i32x4(a, b, 0x4E));
        };
        const __m512i swap = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
        const auto quarters = [&](__m512i a, __m512i b) __attribute__((always_inline)) {
            return _mm512_max_epu32(_mm512_mask_blend_epi32(0xF0F0, a, b),
                                    _mm512_permutex2var_epi32(a, swap, b));
        };
        const auto pairs = [&](__m512i a, __m512i b) __attribute__((always_inline)) {
            return _mm512_max_epu32(_mm512_mask_blend_epi32(0xCCCC, a, b),
                                    shuffled<_MM_SHUFFLE(1, 0, 3, 2)>(a, b));
        };
        __m512i eighths[4];
        FLASHOPTIM_UNROLL
        for (int n = 0; n < 4; ++n) {
            eighths[n] = quarters(halves(row(n), row(8 + n)), halves(row(4 + n), row(12 + n)));
        }
        const __m512i a = pairs(eighths[0], eighths[1]), b = pairs(eighths[2], eighths[3]);
        return uint(_mm512_max_epu32(shuffled<_MM_SHUFFLE(2, 0, 2, 0)>(a, b),
                                     shuffled<_MM_SHUFFLE(3, 1, 3, 1)>(a, b)));
    }

    static FLASHOPTIM_INLINE UInt load_high_u16(const std::uint16_t* p, int j) {
        return uint(upper_halves(_mm512_loadu_si512(p + at(j / 2 * 2)), j % 2));
    }
    static FLASHOPTIM_INLINE void store_high_u16(std::uint16_t* p, const UInt (&from)[kUnit]) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) _mm512_storeu_si512(p + at(j), halves_of<1>(from[j], from[j + 1]));
    }
    static FLASHOPTIM_INLINE void store_low_u16(std::int16_t* p, const UInt (&from)[kUnit],
                                                std::uint32_t flip) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) {
            const __m512i low = halves_of<0>(from[j], from[j + 1]);
            _mm512_storeu_si512(p + at(j),
                                _mm512_xor_si512(low, _mm512_set1_epi16(static_cast<short>(flip))));
        }
    }
    template <int kShift>
    static FLASHOPTIM_INLINE void store_byte(void* p, const UInt (&from)[kUnit], std::uint32_t flip) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) {
            // Moves the byte to the low byte of a 16-bit half, from where it is packed.
            constexpr int kHalf = kShift / 16, kRest = kShift % 16;
            UInt a = from[j], b = from[j + 1];
            __m512i halves;
            if constexpr (kRest <= 8) {
                halves = _mm512_srli_epi16(halves_of<kHalf>(a, b), kRest);
            } else {
                halves = halves_of<0>(a >> static_cast<unsigned>(kShift), b >> static_cast<unsigned>(kShift));
            }
            const __m256i bytes = _mm512_cvtepi16_epi8(halves);
            _mm256_storeu_si256(static_cast<__m256i*>(p) + j / 2,
                                _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(flip))));
        }
    }

protected:
    static FLASHOPTIM_INLINE __m512i raw(UInt x) { return reinterpret_cast<__m512i>(x); }
    static FLASHOPTIM_INLINE UInt uint(__m512i x) { return reinterpret_cast<UInt>(x); }

    template <int kControl>
    static FLASHOPTIM_INLINE __m512i shuffled(__m512i a, __m512i b) {
        return _mm512_castps_si512(
            _mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), kControl));
    }
    /// The first (`half` 0) or last (1) 16 of 32 words, each moved to the upper half of a lane.
    static FLASHOPTIM_INLINE __m512i upper_halves(__m512i words, int half) {
        const __m512i places =
            _mm512_add_epi16(even_words(), _mm512_set1_epi16(static_cast<short>(16 * half)));
        return _mm512_maskz_permutexvar_epi16(0xAAAAAAAAU, places, words);
    }
    /// The permutation that moves word w / 2 to position w.
    static FLASHOPTIM_INLINE __m512i even_words() {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return _mm512_or_si512(lanes, _mm512_slli_epi32(lanes, 16));
    }
    /// The lower (kHalf 0) or upper (1) 16-bit halves of 32 lanes.
    template <int kHalf>
    static FLASHOPTIM_INLINE __m512i halves_of(UInt a, UInt b) {
        // The word positions 2n + kHalf for n = 0 to 31.
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i places = _mm512_add_epi32(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x00040004)),
                                                _mm512_set1_epi32(((2 + kHalf) << 16) | kHalf));
        return _mm512_permutex2var_epi16(raw(a), places, raw(b));
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
