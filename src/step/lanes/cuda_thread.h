// The lanes of a CUDA thread: one element at a time, and units of eight consecutive ones that
// lie in registers as words of 32 bits. Compiles for the host too, with the same bits, for
// the emulation that tests run.
#pragma once

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

struct CudaLanes : ScalarLanes {
    static constexpr int kUnit = 8;

    static FLASHOPTIM_INLINE UInt max_bits(UInt a, UInt b) { return a < b ? b : a; }
    static FLASHOPTIM_INLINE UInt merge_bits(std::uint32_t mask, UInt yes, UInt no) {
#if defined(__CUDA_ARCH__)
        UInt result;  // in one instruction, which the compiler does not find
        asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(result) : "r"(yes), "r"(no), "r"(mask));
        return result;
#else
        return ScalarLanes::merge_bits(mask, yes, no);
#endif
    }
    static FLASHOPTIM_INLINE Float smaller_magnitude(Float x, Float limit) {
#if defined(__CUDA_ARCH__)
        // fminf takes the number beside a NaN, which is `limit`.
        return from_bits(merge_bits(kSign, bits(x), bits(fminf(fabsf(x), limit))));
#else
        return ScalarLanes::smaller_magnitude(x, limit);
#endif
    }
    /// The smaller one of two that are not negative (`b` where a is NaN), with the sign of `sign`.
    /// Instructions take the magnitude of an operand for nothing, but not that of a result.
    static FLASHOPTIM_INLINE Float smaller_with_sign(Float a, Float b, Float sign) {
#if defined(__CUDA_ARCH__)
        const Float smaller = fminf(a, b);
#else
        const Float smaller = a < b ? a : b;
#endif
        return from_bits(merge_bits(kSign, bits(sign), bits(smaller)));
    }
    /// An instruction takes the magnitude of an operand for nothing, where the compiler sees that it is one.
    static FLASHOPTIM_INLINE Float absolute(Float x) {
#if defined(__CUDA_ARCH__)
        return fabsf(x);
#else
        return from_bits(bits(x) & ~kSign);
#endif
    }
    /// The larger one of `largest` and |x|; a NaN in x never counts.
    static FLASHOPTIM_INLINE Float max_magnitude(Float largest, Float x) {
#if defined(__CUDA_ARCH__)
        return fmaxf(largest, fabsf(x));
#else
        return max_ignoring_nan(largest, from_bits(bits(x) & ~kSign));
#endif
    }

    // Units: vector j is element j. `p` is the unit's first element, aligned to 4 bytes.

    static FLASHOPTIM_INLINE UInt load_high_u16(const std::uint16_t* p, int j) {
        const UInt pair = word(p, j / 2);
        return j % 2 == 0 ? pair << 16U : pair & 0xffff0000U;
    }
    /// high * 2^16 + low * 2^8.
    static FLASHOPTIM_INLINE UInt load_joined(const std::uint16_t* high, const std::int8_t* low, int j) {
        return load_high_u16(high, j) + byte_above_byte(word(low, j / 4), j % 4);
    }
    /// high * 2^16 + low.
    static FLASHOPTIM_INLINE UInt load_joined(const std::uint16_t* high, const std::int16_t* low, int j) {
        const UInt pair = word(low, j / 2);
        return load_high_u16(high, j) + shift_right_signed(j % 2 == 0 ? pair << 16U : pair, 16);
    }
    /// A byte in the lowest bits of `base`, whose own lowest byte is zero.
    static FLASHOPTIM_INLINE UInt load_u8_over(std::uint32_t base, const std::uint8_t* p, int j) {
        return byte_over(base, word(p, j / 4), j % 4);
    }
    /// The same of a signed byte, plus 128.
    static FLASHOPTIM_INLINE UInt load_i8_over(std::uint32_t base, const std::int8_t* p, int j) {
        return byte_over(base, word(p, j / 4) ^ 0x80808080U, j % 4);
    }
    static FLASHOPTIM_INLINE void store_high_u16(std::uint16_t* p, const UInt (&from)[kUnit]) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) set_word(p, j / 2, permuted(from[j], from[j + 1], 0x7632U));
    }
    /// The lower halves, with the bits of `flip` inverted.
    static FLASHOPTIM_INLINE void store_low_u16(std::int16_t* p, const UInt (&from)[kUnit],
                                                std::uint32_t flip) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) {
            set_word(p, j / 2, permuted(from[j], from[j + 1], 0x5410U) ^ (flip * 0x10001U));
        }
    }
    /// The eight bits from kShift on, with the bits of `flip` inverted.
    template <int kShift>
    static FLASHOPTIM_INLINE void store_byte(void* p, const UInt (&from)[kUnit], std::uint32_t flip) {
        // Bytes are picked whole. What lies in two is picked with both, moved up to
        // the second, and picked again.
        constexpr unsigned kByte = kShift / 8U, kUp = (8U - kShift % 8U) % 8U;
        constexpr std::uint32_t kPair =
            kUp == 0 ? kByte << 4U | (kByte + 4U) << 12U
                     : kByte | (kByte + 1U) << 4U | (kByte + 4U) << 8U | (kByte + 5U) << 12U;
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 4) {
            const auto low = permuted(from[j], from[j + 1], kPair) << kUp;
            const auto high = permuted(from[j + 2], from[j + 3], kPair) << kUp;
            set_word(p, j / 4, permuted(low, high, 0x7531U) ^ (flip * 0x01010101U));
        }
    }

    /// Word n of what lies at p.
    static FLASHOPTIM_INLINE UInt word(const void* p, int n) {
        UInt result;
        std::memcpy(&result, static_cast<const char*>(p) + 4 * static_cast<std::ptrdiff_t>(n), sizeof result);
        return result;
    }
    static FLASHOPTIM_INLINE void set_word(void* p, int n, UInt value) {
        std::memcpy(static_cast<char*>(p) + 4 * static_cast<std::ptrdiff_t>(n), &value, sizeof value);
    }

private:
    static constexpr UInt kSign = 0x80000000U;

    /// Four bytes, each chosen by four bits of `selector` from the eight of low (0 to 3) and high (4 to 7).
    static FLASHOPTIM_INLINE UInt permuted(UInt low, UInt high, std::uint32_t selector) {
#if defined(__CUDA_ARCH__)
        return __byte_perm(low, high, selector);
#else
        const std::uint64_t bytes = (static_cast<std::uint64_t>(high) << 32U) | low;
        UInt result = 0;
        for (unsigned n = 0; n < 4; ++n) {
            const auto chosen = (selector >> (4U * n)) & 7U;
            result |= static_cast<UInt>((bytes >> (8U * chosen)) & 0xffU) << (8U * n);
        }
        return result;
#endif
    }
    static FLASHOPTIM_INLINE UInt byte_over(std::uint32_t base, UInt from, int n) {
#if defined(__CUDA_ARCH__)
        // Kernels have grids of one dimension, which the compiler does not know: a base that it takes for a
        // variable lies in a register, so that the selector can be part of the instruction.
        base += gridDim.y - 1U;
#endif
        return permuted(from, base, 0x7650U + static_cast<std::uint32_t>(n));
    }
    /// Signed byte n of a word, times 2^8.
    static FLASHOPTIM_INLINE UInt byte_above_byte(UInt from, int n) {
#if defined(__CUDA_ARCH__)
        UInt result;  // the byte, and its sign twice, above a byte of zero
        asm("prmt.b32 %0, %1, 0, %2;" : "=r"(result) : "r"(from), "r"(0x8804 + n * 0x1110));
        return result;
#else
        return shift_right_signed(from << static_cast<unsigned>(24 - 8 * n), 24) << 8U;
#endif
    }
};

/// The same with quotients and roots whose operands are known to be of middling size: the instructions that
/// the compiler itself makes of a correctly rounded division and root, without its check of every operand's
/// range. With the bits of CudaLanes where
///     a / d: d is in [2^-60, 2^30], |a| is 0 or in [kSmallest, 2^60];
///     root of a: a is 0 or in [kSmallest, 2^100].
struct CudaUnguardedLanes : CudaLanes {
    static constexpr float kSmallest = 0x1p-96F;

    /// a / d with a magnitude of at most `limit`.
    static FLASHOPTIM_INLINE Float limited_quotient(Float a, Float d, Float limit) {
#if defined(__CUDA_ARCH__)
        Float reciprocal;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(d));
        reciprocal = fma(reciprocal, fma(-d, reciprocal, 1.0F), reciprocal);
        const Float near = a * reciprocal;
        const Float quotient = fma(reciprocal, fma(-d, near, a), near);
        return smaller_with_sign(fabsf(quotient), limit, a);  // a zero has lost its sign on the way
#else
        return smaller_magnitude(divide(a, d), limit);
#endif
    }
    static FLASHOPTIM_INLINE Float sqrt(Float a) {
#if defined(__CUDA_ARCH__)
        Float reciprocal;
        asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(a));
        reciprocal = fminf(reciprocal, 0x1p60F);  // infinite for zero, whose root is zero this way
        const Float near = a * reciprocal;
        return fma(fma(-near, near, a), reciprocal * 0.5F, near);
#else
        return CudaLanes::sqrt(a);
#endif
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
