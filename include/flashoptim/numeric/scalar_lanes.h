// Lanes of width one: the operations in which formats and rules are written, for one element. Every other
// backend is compared with these lanes, and a CUDA thread uses them too. IEEE 754 fixes the result of every
// operation here: nothing approximates, contracts or flushes to zero.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <cstring>

#include "compiler.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

struct ScalarLanes {
    static constexpr int kWidth = 1;
    static constexpr bool kHasFastFma =
        false;  // whether corrections pay instead of a division (numeric/quotient.h)
    using Float = float;
    using UInt = std::uint32_t;
    using Mask = bool;
    using Doubles = double;

    static FLASHOPTIM_INLINE Float broadcast(float value) { return value; }
    static FLASHOPTIM_INLINE UInt broadcast_bits(std::uint32_t value) { return value; }

    static FLASHOPTIM_INLINE UInt bits(Float x) {
        UInt result;
        std::memcpy(&result, &x, sizeof result);
        return result;
    }
    static FLASHOPTIM_INLINE Float from_bits(UInt x) {
        Float result;
        std::memcpy(&result, &x, sizeof result);
        return result;
    }

    /// The two's complement value as a float, rounded to nearest even above 2^24.
    static FLASHOPTIM_INLINE Float to_float(UInt x) {
        return static_cast<Float>(static_cast<std::int32_t>(x));
    }
    /// x truncated towards zero, in two's complement; |x| < 2^31.
    static FLASHOPTIM_INLINE UInt truncate(Float x) {
        return static_cast<UInt>(static_cast<std::int32_t>(x));
    }
    /// The largest integer that is not above x, in two's complement; |x| < 2^31.
    static FLASHOPTIM_INLINE UInt floor_to_integer(Float x) {
        const UInt towards_zero = truncate(x);
        return x < to_float(towards_zero) ? towards_zero - 1U : towards_zero;
    }
    /// Shifts a two's complement value, copying the sign.
    static FLASHOPTIM_INLINE UInt shift_right_signed(UInt x, int count) {
        return static_cast<UInt>(static_cast<std::int32_t>(x) >> count);
    }

    static FLASHOPTIM_INLINE Float fma(Float a, Float b, Float c) {
#if defined(__CUDA_ARCH__)
        return __fmaf_rn(a, b, c);
#else
        return __builtin_fmaf(a, b, c);
#endif
    }
    static FLASHOPTIM_INLINE Float divide(Float a, Float b) {
#if defined(__CUDA_ARCH__)
        return __fdiv_rn(a, b);
#else
        return a / b;
#endif
    }
    static FLASHOPTIM_INLINE Float sqrt(Float a) {
#if defined(__CUDA_ARCH__)
        return __fsqrt_rn(a);
#else
        return __builtin_sqrtf(a);
#endif
    }

    static FLASHOPTIM_INLINE Mask less(Float a, Float b) { return a < b; }
    static FLASHOPTIM_INLINE Mask equal(Float a, Float b) { return a == b; }
    static FLASHOPTIM_INLINE Mask less_bits(UInt a, UInt b) { return a < b; }
    static FLASHOPTIM_INLINE Mask equal_bits(UInt a, UInt b) { return a == b; }
    static FLASHOPTIM_INLINE Mask negate(Mask a) { return !a; }
    static FLASHOPTIM_INLINE Mask both(Mask a, Mask b) { return a && b; }
    static FLASHOPTIM_INLINE Mask either(Mask a, Mask b) { return a || b; }
    static FLASHOPTIM_INLINE bool any(Mask a) { return a; }
    static FLASHOPTIM_INLINE int count(Mask a) { return a ? 1 : 0; }
    static FLASHOPTIM_INLINE UInt mask_bits(Mask a) { return a ? 0xffffffffU : 0U; }
    static FLASHOPTIM_INLINE Mask from_mask_bits(UInt a) { return a != 0; }

    static FLASHOPTIM_INLINE Float select(Mask m, Float yes, Float no) { return m ? yes : no; }
    static FLASHOPTIM_INLINE UInt select_bits(Mask m, UInt yes, UInt no) { return m ? yes : no; }
    static FLASHOPTIM_INLINE UInt min_bits(UInt a, UInt b) { return a < b ? a : b; }
    /// The bits of `yes` where `mask` has a 1, else those of `no`.
    static FLASHOPTIM_INLINE UInt merge_bits(std::uint32_t mask, UInt yes, UInt no) {
        return (yes & mask) | (no & ~mask);
    }
    /// x with its magnitude clamped to `limit`, which is not negative. A NaN gives `limit`.
    static FLASHOPTIM_INLINE Float smaller_magnitude(Float x, Float limit) {
        const UInt size = bits(x) & 0x7fffffffU;
        const Float smaller = from_bits(size) < limit ? from_bits(size) : limit;
        return from_bits(merge_bits(0x80000000U, bits(x), bits(smaller)));
    }
    /// The larger of both; `a` if `b` is NaN.
    static FLASHOPTIM_INLINE Float max_ignoring_nan(Float a, Float b) { return b > a ? b : a; }
    static FLASHOPTIM_INLINE float horizontal_max(Float a) { return a; }

    template <class T>
    static FLASHOPTIM_INLINE T load_as(const void* from) {
        T value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    static FLASHOPTIM_INLINE void add_squares(Float x, Doubles& sum) {
        sum += static_cast<double>(x) * static_cast<double>(x);
    }
    static FLASHOPTIM_INLINE Float load_f32(const float* p) { return *p; }
    static FLASHOPTIM_INLINE void store_f32(float* p, Float x) { *p = x; }
    static FLASHOPTIM_INLINE UInt load_u32(const std::uint32_t* p) { return *p; }
    static FLASHOPTIM_INLINE void store_u32(std::uint32_t* p, UInt x) { *p = x; }
    static FLASHOPTIM_INLINE UInt load_u16(const std::uint16_t* p) { return *p; }
    static FLASHOPTIM_INLINE void store_u16(std::uint16_t* p, UInt x) { *p = static_cast<std::uint16_t>(x); }
    static FLASHOPTIM_INLINE UInt load_i16(const std::int16_t* p) {
        return static_cast<UInt>(static_cast<std::int32_t>(*p));
    }
    static FLASHOPTIM_INLINE void store_i16(std::int16_t* p, UInt x) { *p = static_cast<std::int16_t>(x); }
    static FLASHOPTIM_INLINE UInt load_i8(const std::int8_t* p) {
        return static_cast<UInt>(static_cast<std::int32_t>(*p));
    }
    static FLASHOPTIM_INLINE void store_i8(std::int8_t* p, UInt x) { *p = static_cast<std::int8_t>(x); }
    static FLASHOPTIM_INLINE UInt load_u8(const std::uint8_t* p) { return *p; }
    static FLASHOPTIM_INLINE void store_u8(std::uint8_t* p, UInt x) { *p = static_cast<std::uint8_t>(x); }
};

constexpr std::uint32_t kSignBit = 0x80000000U;
constexpr std::uint32_t kMagnitudeBits = 0x7fffffffU;
constexpr std::uint32_t kInfinityBits = 0x7f800000U;

template <class L>
FLASHOPTIM_INLINE typename L::Float absolute(typename L::Float x) {
    if constexpr (requires { L::absolute(x); }) {
        return L::absolute(x);
    } else {
        return L::from_bits(L::bits(x) & kMagnitudeBits);
    }
}
/// `magnitude` with the sign of `sign`.
template <class L>
FLASHOPTIM_INLINE typename L::Float with_sign(typename L::Float magnitude, typename L::Float sign) {
    return L::from_bits(L::merge_bits(kSignBit, L::bits(sign), L::bits(magnitude)));
}
template <class L>
FLASHOPTIM_INLINE typename L::Mask is_nan(typename L::Float x) {
    return L::less_bits(L::broadcast_bits(kInfinityBits), L::bits(x) & kMagnitudeBits);
}
/// 2^exponent as a float, for -126 <= exponent <= 127 (a two's complement lane value).
template <class L>
FLASHOPTIM_INLINE typename L::Float power_of_two(typename L::UInt exponent) {
    return L::from_bits((exponent + 127U) << 23U);
}

}  // namespace flashoptim::inline FLASHOPTIM_ISA

#endif
