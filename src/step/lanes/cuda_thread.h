// The lanes of a CUDA thread: one element at a time. A unit is eight consecutive elements that lie in
// registers as 32-bit words. The file also compiles for the host, with the same bits, for the emulation in
// the tests.
#pragma once

#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

struct CudaLanes : ScalarLanes {
    static constexpr int kUnit = 8;

    static FLASHOPTIM_INLINE UInt max_bits(UInt a, UInt b) { return a < b ? b : a; }
    static FLASHOPTIM_INLINE UInt merge_bits(std::uint32_t mask, UInt yes, UInt no) {
#if defined(__CUDA_ARCH__)
        UInt result;  // one instruction, which the compiler does not generate
        asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(result) : "r"(yes), "r"(no), "r"(mask));
        return result;
#else
        return ScalarLanes::merge_bits(mask, yes, no);
#endif
    }
    static FLASHOPTIM_INLINE Float smaller_magnitude(Float x, Float limit) {
#if defined(__CUDA_ARCH__)
        // If x is a NaN, fminf returns its other operand, `limit`.
        return from_bits(merge_bits(kSign, bits(x), bits(fminf(fabsf(x), limit))));
#else
        return ScalarLanes::smaller_magnitude(x, limit);
#endif
    }
    /// The smaller of a and b with the sign of `sign`; b if a is NaN. Neither a nor b is negative. Callers
    /// take the absolute value of an operand, which costs no instruction; that of a result would.
    static FLASHOPTIM_INLINE Float smaller_with_sign(Float a, Float b, Float sign) {
#if defined(__CUDA_ARCH__)
        const Float smaller = fminf(a, b);
#else
        const Float smaller = a < b ? a : b;
#endif
        return from_bits(merge_bits(kSign, bits(sign), bits(smaller)));
    }
    /// Written as fabsf, which the compiler folds into the operand of the next instruction.
    static FLASHOPTIM_INLINE Float absolute(Float x) {
#if defined(__CUDA_ARCH__)
        return fabsf(x);
#else
        return from_bits(bits(x) & ~kSign);
#endif
    }
    /// The larger of `largest` and |x|; `largest` if x is NaN.
    static FLASHOPTIM_INLINE Float max_magnitude(Float largest, Float x) {
#if defined(__CUDA_ARCH__)
        return fmaxf(largest, fabsf(x));
#else
        return max_ignoring_nan(largest, from_bits(bits(x) & ~kSign));
#endif
    }

    // Units. Vector j is element j. p is the unit's first element, aligned to 4 bytes.

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
    /// Byte j in the lowest bits of `base`, whose own lowest byte is zero.
    static FLASHOPTIM_INLINE UInt load_u8_over(std::uint32_t base, const std::uint8_t* p, int j) {
        return byte_over(base, word(p, j / 4), j % 4);
    }
    /// The same for a signed byte plus 128.
    static FLASHOPTIM_INLINE UInt load_i8_over(std::uint32_t base, const std::int8_t* p, int j) {
        return byte_over(base, word(p, j / 4) ^ 0x80808080U, j % 4);
    }
    static FLASHOPTIM_INLINE void store_high_u16(std::uint16_t* p, const UInt (&from)[kUnit]) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) set_word(p, j / 2, permuted(from[j], from[j + 1], 0x7632U));
    }
    /// Stores the lower 16 bits of each lane, XORed with `flip`.
    static FLASHOPTIM_INLINE void store_low_u16(std::int16_t* p, const UInt (&from)[kUnit],
                                                std::uint32_t flip) {
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kUnit; j += 2) {
            set_word(p, j / 2, permuted(from[j], from[j + 1], 0x5410U) ^ (flip * 0x10001U));
        }
    }
    /// Stores the eight bits of each lane from bit kShift on, XORed with `flip`.
    template <int kShift>
    static FLASHOPTIM_INLINE void store_byte(void* p, const UInt (&from)[kUnit], std::uint32_t flip) {
        // The permute instruction moves whole bytes. If the eight bits span two bytes, both are moved,
        // shifted up so that the second byte holds the eight bits, and that byte is moved again.
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

    /// The 32-bit word n at p.
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
        // Adds 0, because the grids of all kernels have one dimension. The compiler does not know that and
        // keeps `base` in a register, so that the selector can be an immediate of the instruction.
        base += gridDim.y - 1U;
#endif
        return permuted(from, base, 0x7650U + static_cast<std::uint32_t>(n));
    }
    /// Signed byte n of a word, times 2^8, in two's complement.
    static FLASHOPTIM_INLINE UInt byte_above_byte(UInt from, int n) {
#if defined(__CUDA_ARCH__)
        UInt result;  // a zero byte, the byte, and its sign twice
        asm("prmt.b32 %0, %1, 0, %2;" : "=r"(result) : "r"(from), "r"(0x8804 + n * 0x1110));
        return result;
#else
        return shift_right_signed(from << static_cast<unsigned>(24 - 8 * n), 24) << 8U;
#endif
    }
};

/// CudaLanes with division and square root for operands that are known to be in range. They are the
/// instructions that the compiler emits for a correctly rounded division and root, without its range check of
/// every operand. The bits are those of CudaLanes if
///     a / d: d is in [2^-60, 2^30], |a| is 0 or in [kSmallest, 2^60];
///     root of a: a is 0 or in [kSmallest, 2^100].
struct CudaUnguardedLanes : CudaLanes {
    static constexpr float kSmallest = 0x1p-96F;

    /// a / d, its magnitude clamped to `limit`.
    static FLASHOPTIM_INLINE Float limited_quotient(Float a, Float d, Float limit) {
#if defined(__CUDA_ARCH__)
        Float reciprocal;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(d));
        reciprocal = fma(reciprocal, fma(-d, reciprocal, 1.0F), reciprocal);
        const Float near = a * reciprocal;
        const Float quotient = fma(reciprocal, fma(-d, near, a), near);
        return smaller_with_sign(fabsf(quotient), limit, a);  // restores the sign of a zero
#else
        return smaller_magnitude(divide(a, d), limit);
#endif
    }
    static FLASHOPTIM_INLINE Float sqrt(Float a) {
#if defined(__CUDA_ARCH__)
        Float reciprocal;
        asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(a));
        reciprocal = fminf(reciprocal, 0x1p60F);  // infinite for a = 0; clamped, so that the root of 0 is 0
        const Float near = a * reciprocal;
        return fma(fma(-near, near, a), reciprocal * 0.5F, near);
#else
        return CudaLanes::sqrt(a);
#endif
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
