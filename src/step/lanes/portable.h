// Lanes of kLanes floats in the compiler's vector types, without intrinsics. The same source becomes SSE2,
// AVX2, AVX-512 or NEON by the flags of the file that includes it. Bit-identical to ScalarLanes. The lanes of
// an instruction set derive from these and replace the operations that they do faster.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "flashoptim/numeric/compiler.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

/// The compiler's vector types for each width. One specialisation each, because their size must not depend on
/// a template parameter.
template <int kLanes>
struct VectorTypes;
template <>
struct VectorTypes<4> {
    typedef float Float __attribute__((vector_size(16)));
    typedef std::uint32_t UInt __attribute__((vector_size(16)));
    typedef std::int32_t Int __attribute__((vector_size(16)));
    typedef std::uint16_t UInt16 __attribute__((vector_size(8)));
    typedef std::int16_t Int16 __attribute__((vector_size(8)));
    typedef std::uint8_t UInt8 __attribute__((vector_size(4)));
    typedef std::int8_t Int8 __attribute__((vector_size(4)));
    typedef float HalfFloat __attribute__((vector_size(8)));
    typedef double HalfDouble __attribute__((vector_size(16)));
};
template <>
struct VectorTypes<8> {
    typedef float Float __attribute__((vector_size(32)));
    typedef std::uint32_t UInt __attribute__((vector_size(32)));
    typedef std::int32_t Int __attribute__((vector_size(32)));
    typedef std::uint16_t UInt16 __attribute__((vector_size(16)));
    typedef std::int16_t Int16 __attribute__((vector_size(16)));
    typedef std::uint8_t UInt8 __attribute__((vector_size(8)));
    typedef std::int8_t Int8 __attribute__((vector_size(8)));
    typedef float HalfFloat __attribute__((vector_size(16)));
    typedef double HalfDouble __attribute__((vector_size(32)));
};
template <>
struct VectorTypes<16> {
    typedef float Float __attribute__((vector_size(64)));
    typedef std::uint32_t UInt __attribute__((vector_size(64)));
    typedef std::int32_t Int __attribute__((vector_size(64)));
    typedef std::uint16_t UInt16 __attribute__((vector_size(32)));
    typedef std::int16_t Int16 __attribute__((vector_size(32)));
    typedef std::uint8_t UInt8 __attribute__((vector_size(16)));
    typedef std::int8_t Int8 __attribute__((vector_size(16)));
    typedef float HalfFloat __attribute__((vector_size(32)));
    typedef double HalfDouble __attribute__((vector_size(64)));
};

/// `Own` is the derived class. The functions here call its replacements.
template <int kLanes, class Own = void>
struct PortableLanes {
    using Self = std::conditional_t<std::is_void_v<Own>, PortableLanes, Own>;
    PortableLanes() = delete;  // static functions only
    static constexpr int kWidth = kLanes;
    static constexpr bool kHasFastFma = false;
    static constexpr int kUnit = 4;  // vectors in a unit: the bytes of their elements fill one register
    using Float = typename VectorTypes<kLanes>::Float;
    using UInt = typename VectorTypes<kLanes>::UInt;
    using Int = typename VectorTypes<kLanes>::Int;
    using Mask = Int;  // 0 or -1 in each lane
    using HalfFloat = typename VectorTypes<kLanes>::HalfFloat;
    using HalfDouble = typename VectorTypes<kLanes>::HalfDouble;
    struct Doubles {
        HalfDouble half[2];
    };

    // value - 0 and not value + 0, because -0 + 0 is +0.
    static FLASHOPTIM_INLINE Float broadcast(float value) { return value - Float{}; }
    static FLASHOPTIM_INLINE UInt broadcast_bits(std::uint32_t value) { return UInt{} + value; }
    static FLASHOPTIM_INLINE UInt bits(Float x) { return reinterpret_cast<UInt>(x); }
    static FLASHOPTIM_INLINE Float from_bits(UInt x) { return reinterpret_cast<Float>(x); }
    static FLASHOPTIM_INLINE Float to_float(UInt x) {
        return __builtin_convertvector(reinterpret_cast<Int>(x), Float);
    }
    static FLASHOPTIM_INLINE UInt truncate(Float x) {
        return reinterpret_cast<UInt>(__builtin_convertvector(x, Int));
    }
    /// The largest integer that is not above x; |x| < 2^31.
    static FLASHOPTIM_INLINE UInt floor_to_integer(Float x) {
        const UInt towards_zero = Self::truncate(x);
        // Subtracts 1 where truncation rounded up: for negative x that is no integer.
        return towards_zero - (mask_bits(x < Self::to_float(towards_zero)) & 1U);
    }
    static FLASHOPTIM_INLINE UInt shift_right_signed(UInt x, int count) {
        return reinterpret_cast<UInt>(reinterpret_cast<Int>(x) >> count);
    }

    static FLASHOPTIM_INLINE Float fma(Float a, Float b, Float c) {
        Float result;
        for (int lane = 0; lane < kLanes; ++lane) result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
        return result;
    }
    static FLASHOPTIM_INLINE Float divide(Float a, Float b) { return a / b; }
    static FLASHOPTIM_INLINE Float sqrt(Float a) {
        Float result;
        for (int lane = 0; lane < kLanes; ++lane) result[lane] = __builtin_sqrtf(a[lane]);
        return result;
    }

    static FLASHOPTIM_INLINE Mask less(Float a, Float b) { return a < b; }
    static FLASHOPTIM_INLINE Mask equal(Float a, Float b) { return a == b; }
    static FLASHOPTIM_INLINE Mask less_bits(UInt a, UInt b) { return a < b; }
    static FLASHOPTIM_INLINE Mask equal_bits(UInt a, UInt b) { return a == b; }
    static FLASHOPTIM_INLINE Mask negate(Mask a) { return ~a; }
    static FLASHOPTIM_INLINE Mask both(Mask a, Mask b) { return a & b; }
    static FLASHOPTIM_INLINE Mask either(Mask a, Mask b) { return a | b; }
    static FLASHOPTIM_INLINE bool any(Mask a) {
        std::int32_t all = 0;
        for (int lane = 0; lane < kLanes; ++lane) all |= a[lane];
        return all != 0;
    }
    static FLASHOPTIM_INLINE int count(Mask a) {
        std::int32_t sum = 0;
        for (int lane = 0; lane < kLanes; ++lane) sum -= a[lane];
        return sum;
    }
    static FLASHOPTIM_INLINE UInt mask_bits(Mask a) { return reinterpret_cast<UInt>(a); }
    static FLASHOPTIM_INLINE Mask from_mask_bits(UInt a) { return reinterpret_cast<Mask>(a); }

    static FLASHOPTIM_INLINE Float select(Mask m, Float yes, Float no) { return m ? yes : no; }
    static FLASHOPTIM_INLINE UInt select_bits(Mask m, UInt yes, UInt no) { return m ? yes : no; }
    static FLASHOPTIM_INLINE UInt min_bits(UInt a, UInt b) { return a < b ? a : b; }
    static FLASHOPTIM_INLINE UInt max_bits(UInt a, UInt b) { return a < b ? b : a; }
    static FLASHOPTIM_INLINE UInt merge_bits(std::uint32_t mask, UInt yes, UInt no) {
        return (yes & mask) | (no & ~mask);
    }
    static FLASHOPTIM_INLINE Float smaller_magnitude(Float x, Float limit) {
        const Float size = from_bits(bits(x) & 0x7fffffffU);
        return from_bits(Self::merge_bits(0x80000000U, bits(x), bits(size < limit ? size : limit)));
    }
    static FLASHOPTIM_INLINE Float max_ignoring_nan(Float a, Float b) { return b > a ? b : a; }
    /// The larger of `largest` and |x|; `largest` if x is NaN.
    static FLASHOPTIM_INLINE Float max_magnitude(Float largest, Float x) {
        return max_ignoring_nan(largest, from_bits(bits(x) & 0x7fffffffU));
    }
    /// The largest element of each of kWidth rows, compared as unsigned integers. Lane n has that of row n.
    static FLASHOPTIM_INLINE UInt row_maxima(const std::uint32_t (*rows)[kLanes]) {
        UInt result{};
        for (int row = 0; row < kLanes; ++row) {
            std::uint32_t largest = 0;
            for (int lane = 0; lane < kLanes; ++lane) {
                largest = rows[row][lane] > largest ? rows[row][lane] : largest;
            }
            result[row] = largest;
        }
        return result;
    }
    static FLASHOPTIM_INLINE float horizontal_max(Float a) {
        float largest = a[0];
        for (int lane = 1; lane < kLanes; ++lane) largest = a[lane] > largest ? a[lane] : largest;
        return largest;
    }

    /// Adds the square of each element to its own sum, in double.
    static FLASHOPTIM_INLINE void add_squares(Float x, Doubles& sums) {
        HalfFloat halves[2];
        std::memcpy(halves, &x, sizeof x);
        FLASHOPTIM_UNROLL
        for (int half = 0; half < 2; ++half) {
            const auto wide = __builtin_convertvector(halves[half], HalfDouble);
            sums.half[half] += wide * wide;
        }
    }

    static FLASHOPTIM_INLINE Float load_f32(const float* p) { return load<Float>(p); }
    static FLASHOPTIM_INLINE void store_f32(float* p, Float x) { std::memcpy(p, &x, sizeof x); }
    static FLASHOPTIM_INLINE UInt load_u32(const std::uint32_t* p) { return load<UInt>(p); }
    static FLASHOPTIM_INLINE void store_u32(std::uint32_t* p, UInt x) { std::memcpy(p, &x, sizeof x); }
    static FLASHOPTIM_INLINE UInt load_u16(const std::uint16_t* p) {
        return __builtin_convertvector(load<UInt16>(p), UInt);
    }
    static FLASHOPTIM_INLINE void store_u16(std::uint16_t* p, UInt x) {
        const auto narrow = __builtin_convertvector(x, UInt16);
        std::memcpy(p, &narrow, sizeof narrow);
    }
    static FLASHOPTIM_INLINE UInt load_i16(const std::int16_t* p) {
        return reinterpret_cast<UInt>(__builtin_convertvector(load<Int16>(p), Int));
    }
    static FLASHOPTIM_INLINE void store_i16(std::int16_t* p, UInt x) {
        store_u16(reinterpret_cast<std::uint16_t*>(p), x);
    }
    static FLASHOPTIM_INLINE UInt load_i8(const std::int8_t* p) {
        return reinterpret_cast<UInt>(__builtin_convertvector(load<Int8>(p), Int));
    }
    static FLASHOPTIM_INLINE void store_i8(std::int8_t* p, UInt x) {
        store_u8(reinterpret_cast<std::uint8_t*>(p), x);
    }
    static FLASHOPTIM_INLINE UInt load_u8(const std::uint8_t* p) {
        return __builtin_convertvector(load<UInt8>(p), UInt);
    }
    static FLASHOPTIM_INLINE void store_u8(std::uint8_t* p, UInt x) {
        const auto narrow = __builtin_convertvector(x, UInt8);
        std::memcpy(p, &narrow, sizeof narrow);
    }

    // Units: kUnit vectors of consecutive elements. The vectors of the unit at p are loaded one by one
    // (vector j), but stored together.

    /// 16-bit values in the upper halves of the lanes, zeros below: bfloat16 as floats.
    static FLASHOPTIM_INLINE UInt load_high_u16(const std::uint16_t* p, int j) {
        return Self::load_u16(p + at(j)) << 16U;
    }
    /// high * 2^16 + low * 2^8.
    static FLASHOPTIM_INLINE UInt load_joined(const std::uint16_t* high, const std::int8_t* low, int j) {
        return Self::load_high_u16(high, j) + (Self::load_i8(low + at(j)) << 8U);
    }
    /// high * 2^16 + low.
    static FLASHOPTIM_INLINE UInt load_joined(const std::uint16_t* high, const std::int16_t* low, int j) {
        return Self::load_high_u16(high, j) + Self::load_i16(low + at(j));
    }
    /// Bytes in the lowest bits of `base`.
    static FLASHOPTIM_INLINE UInt load_u8_over(std::uint32_t base, const std::uint8_t* p, int j) {
        return Self::load_u8(p + at(j)) | base;
    }
    static FLASHOPTIM_INLINE void store_high_u16(std::uint16_t* p, const UInt (&from)[kUnit]) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; ++j) Self::store_u16(p + at(j), from[j] >> 16U);
    }
    /// Stores the lower 16 bits of each lane, XORed with `flip`.
    static FLASHOPTIM_INLINE void store_low_u16(std::int16_t* p, const UInt (&from)[kUnit],
                                                std::uint32_t flip) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; ++j) Self::store_i16(p + at(j), from[j] ^ flip);
    }
    /// Stores the eight bits of each lane from bit kShift on, XORed with `flip`.
    template <int kShift>
    static FLASHOPTIM_INLINE void store_byte(void* p, const UInt (&from)[kUnit], std::uint32_t flip) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; ++j) {
            Self::store_u8(static_cast<std::uint8_t*>(p) + at(j),
                           (from[j] >> static_cast<unsigned>(kShift)) ^ flip);
        }
    }

protected:
    /// Where vector j of a unit begins.
    static constexpr std::ptrdiff_t at(int j) { return static_cast<std::ptrdiff_t>(j) * kLanes; }

    using UInt16 = typename VectorTypes<kLanes>::UInt16;
    using Int16 = typename VectorTypes<kLanes>::Int16;
    using UInt8 = typename VectorTypes<kLanes>::UInt8;
    using Int8 = typename VectorTypes<kLanes>::Int8;

    template <class Vector>
    static FLASHOPTIM_INLINE Vector load(const void* p) {
        Vector result;
        std::memcpy(&result, p, sizeof result);
        return result;
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
