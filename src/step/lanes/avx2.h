// Lanes of 8 floats in AVX2 with FMA. They replace the operations of PortableLanes for which the compiler's
// code is slow.
#pragma once

#include <immintrin.h>

#include "step/lanes/portable.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

struct Avx2Lanes : PortableLanes<8, Avx2Lanes> {
    static constexpr bool kHasFastFma = true;

    static FLASHOPTIM_INLINE Float broadcast(float value) { return _mm256_set1_ps(value); }
    static FLASHOPTIM_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    static FLASHOPTIM_INLINE Float sqrt(Float a) { return _mm256_sqrt_ps(a); }

    static FLASHOPTIM_INLINE bool any(Mask a) { return _mm256_movemask_ps(reinterpret_cast<__m256>(a)) != 0; }
    static FLASHOPTIM_INLINE int count(Mask a) {
        return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(a))));
    }
    static FLASHOPTIM_INLINE Float select(Mask m, Float yes, Float no) {
        return _mm256_blendv_ps(no, yes, reinterpret_cast<__m256>(m));
    }
    static FLASHOPTIM_INLINE UInt min_bits(UInt a, UInt b) { return uint(_mm256_min_epu32(raw(a), raw(b))); }
    static FLASHOPTIM_INLINE UInt max_bits(UInt a, UInt b) { return uint(_mm256_max_epu32(raw(a), raw(b))); }
    static FLASHOPTIM_INLINE Float smaller_magnitude(Float x, Float limit) {
        const Float sign = from_bits(broadcast_bits(0x80000000U));
        return _mm256_or_ps(_mm256_min_ps(_mm256_andnot_ps(sign, x), limit), _mm256_and_ps(sign, x));
    }
    static FLASHOPTIM_INLINE Float max_ignoring_nan(Float a, Float b) { return _mm256_max_ps(b, a); }
    static FLASHOPTIM_INLINE Float max_magnitude(Float largest, Float x) {
        return _mm256_max_ps(_mm256_andnot_ps(from_bits(broadcast_bits(0x80000000U)), x), largest);
    }

    // By intrinsics, because the compiler converts vectors of bytes and words element by element.
    static FLASHOPTIM_INLINE Float to_float(UInt x) { return _mm256_cvtepi32_ps(raw(x)); }
    static FLASHOPTIM_INLINE UInt truncate(Float x) { return uint(_mm256_cvttps_epi32(x)); }
    static FLASHOPTIM_INLINE void add_squares(Float x, Doubles& sums) {
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
        const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
        sums.half[0] = _mm256_fmadd_pd(low, low, sums.half[0]);
        sums.half[1] = _mm256_fmadd_pd(high, high, sums.half[1]);
    }
    static FLASHOPTIM_INLINE UInt floor_to_integer(Float x) { return truncate(_mm256_floor_ps(x)); }
    static FLASHOPTIM_INLINE UInt load_u16(const std::uint16_t* p) {
        return uint(_mm256_cvtepu16_epi32(load<__m128i>(p)));
    }
    static FLASHOPTIM_INLINE UInt load_i16(const std::int16_t* p) {
        return uint(_mm256_cvtepi16_epi32(load<__m128i>(p)));
    }
    static FLASHOPTIM_INLINE UInt load_i8(const std::int8_t* p) {
        return uint(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static FLASHOPTIM_INLINE UInt load_u8(const std::uint8_t* p) {
        return uint(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }

    static FLASHOPTIM_INLINE void store_u16(std::uint16_t* p, UInt x) {
        const __m256i low = raw(x & 0xffffU);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves_packed(low));
    }
    static FLASHOPTIM_INLINE void store_i16(std::int16_t* p, UInt x) {
        store_u16(reinterpret_cast<std::uint16_t*>(p), x);
    }
    static FLASHOPTIM_INLINE void store_u8(std::uint8_t* p, UInt x) {
        const __m128i words = halves_packed(raw(x & 0xffU));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
    }
    static FLASHOPTIM_INLINE void store_i8(std::int8_t* p, UInt x) {
        store_u8(reinterpret_cast<std::uint8_t*>(p), x);
    }

    /// Reduces in three rounds. Each round combines two registers of partial maxima into one.
    static FLASHOPTIM_INLINE UInt row_maxima(const std::uint32_t (*rows)[8]) {
        const auto row = [&](int n) __attribute__((always_inline)) {
            return _mm256_load_si256(reinterpret_cast<const __m256i*>(rows[n]));
        };
        __m256i halves[4];
        FLASHOPTIM_UNROLL
        for (int n = 0; n < 4; ++n) {
            halves[n] = _mm256_max_epu32(_mm256_permute2x128_si256(row(n), row(4 + n), 0x20),
                                         _mm256_permute2x128_si256(row(n), row(4 + n), 0x31));
        }
        const auto quarters = [](__m256i a, __m256i b) __attribute__((always_inline)) {
            return _mm256_max_epu32(shuffled<_MM_SHUFFLE(2, 0, 2, 0)>(a, b),
                                    shuffled<_MM_SHUFFLE(3, 1, 3, 1)>(a, b));
        };
        return uint(quarters(quarters(halves[0], halves[1]), quarters(halves[2], halves[3])));
    }

    static FLASHOPTIM_INLINE void store_high_u16(std::uint16_t* p, const UInt (&from)[kUnit]) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) {
            store(p + at(j), packed_u16(raw(from[j] >> 16U), raw(from[j + 1] >> 16U)));
        }
    }
    static FLASHOPTIM_INLINE void store_low_u16(std::int16_t* p, const UInt (&from)[kUnit],
                                                std::uint32_t flip) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) {
            const __m256i low = packed_u16(raw(from[j] & 0xffffU), raw(from[j + 1] & 0xffffU));
            store(p + at(j), _mm256_xor_si256(low, _mm256_set1_epi16(static_cast<short>(flip))));
        }
    }
    template <int kShift>
    static FLASHOPTIM_INLINE void store_byte(void* p, const UInt (&from)[kUnit], std::uint32_t flip) {
        const auto byte = [&](int j) __attribute__((always_inline)) {
            return raw((from[j] >> static_cast<unsigned>(kShift)) & 0xffU);
        };
        const __m256i words = _mm256_packus_epi32(byte(0), byte(1)),
                      more = _mm256_packus_epi32(byte(2), byte(3));
        // The pack instruction works within each half of the register, so the result is permuted.
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, more),
                                                          _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        store(p, _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(flip))));
    }

private:
    static FLASHOPTIM_INLINE __m256i raw(UInt x) { return reinterpret_cast<__m256i>(x); }
    static FLASHOPTIM_INLINE UInt uint(__m256i x) { return reinterpret_cast<UInt>(x); }
    static FLASHOPTIM_INLINE void store(void* p, __m256i x) {
        _mm256_storeu_si256(static_cast<__m256i*>(p), x);
    }
    template <int kControl>
    static FLASHOPTIM_INLINE __m256i shuffled(__m256i a, __m256i b) {
        return _mm256_castps_si256(
            _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), kControl));
    }
    /// 8 values below 2^16 as 16-bit words.
    static FLASHOPTIM_INLINE __m128i halves_packed(__m256i x) {
        return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    }
    /// 16 values below 2^16 as 16-bit words.
    static FLASHOPTIM_INLINE __m256i packed_u16(__m256i a, __m256i b) {
        return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), _MM_SHUFFLE(3, 1, 2, 0));
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
