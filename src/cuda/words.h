// The eight elements of a thread in registers: loading, storing, and the conversion of gradients to fp32.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/run.h"
#include "flashoptim/numeric/float16.h"
#include "step/lanes/cuda_thread.h"

namespace flashoptim::cuda {

/// An element shifted to position `n` of a word, and the reverse.
template <class T>
FLASHOPTIM_INLINE std::uint32_t moved_up(T value, int n) {
    if constexpr (sizeof(T) == 4) {
        return CudaLanes::bits(value);
    } else if constexpr (sizeof(T) == 2) {
        return static_cast<std::uint32_t>(static_cast<std::uint16_t>(value)) << static_cast<unsigned>(16 * n);
    } else {
        return static_cast<std::uint32_t>(static_cast<std::uint8_t>(value)) << static_cast<unsigned>(8 * n);
    }
}
template <class T>
FLASHOPTIM_INLINE T moved_down(std::uint32_t word, int n) {
    if constexpr (sizeof(T) == 4) {
        return CudaLanes::from_bits(word);
    } else {
        return static_cast<T>(word >> static_cast<unsigned>(8 * static_cast<int>(sizeof(T)) * n));
    }
}

/// The eight elements of a thread as 32-bit words, which stay in registers.
template <class T>
struct Words {
    static constexpr int kWords = kElements * static_cast<int>(sizeof(T)) / 4;
    static constexpr int kInWord = 4 / static_cast<int>(sizeof(T));
    std::uint32_t word[kWords] = {};

    /// As the type that the lanes' functions for units take.
    FLASHOPTIM_INLINE T* elements() { return reinterpret_cast<T*>(word); }
    [[nodiscard]] FLASHOPTIM_INLINE const T* elements() const { return reinterpret_cast<const T*>(word); }
    [[nodiscard]] FLASHOPTIM_INLINE T get(int e) const {
        T value;
        std::memcpy(&value, reinterpret_cast<const char*>(word) + static_cast<std::size_t>(e) * sizeof(T),
                    sizeof(T));
        return value;
    }
    FLASHOPTIM_INLINE void set(int e, T value) {
        std::memcpy(reinterpret_cast<char*>(word) + static_cast<std::size_t>(e) * sizeof(T), &value,
                    sizeof(T));
    }
};

/// Loads the elements of a run: with one access if kWhole, else one by one, with zeros after the end.
template <bool kWhole, class T>
FLASHOPTIM_INLINE void load_run(Words<T>& to, const void* buffer, const Run& run) {
    const T* const from = static_cast<const T*>(buffer) + run.element;
    if constexpr (!kWhole) {
        FLASHOPTIM_UNROLL
        for (int n = 0; n < Words<T>::kWords; ++n) to.word[n] = 0;
        FLASHOPTIM_UNROLL
        for (int e = 0; e < kElements; ++e) {
            if (e < run.count) to.word[e / Words<T>::kInWord] |= moved_up(from[e], e % Words<T>::kInWord);
        }
    } else {
#if defined(__CUDA_ARCH__)
        // Streaming loads: a step reads nothing twice, so the data need not stay in a cache.
        if constexpr (Words<T>::kWords == 2) {
            const uint2 two = __ldcs(reinterpret_cast<const uint2*>(from));
            to.word[0] = two.x;
            to.word[1] = two.y;
        } else {
            FLASHOPTIM_UNROLL
            for (int n = 0; n < Words<T>::kWords; n += 4) {
                const uint4 four = __ldcs(reinterpret_cast<const uint4*>(from) + n / 4);
                to.word[n] = four.x;
                to.word[n + 1] = four.y;
                to.word[n + 2] = four.z;
                to.word[n + 3] = four.w;
            }
        }
#else
        std::memcpy(to.word, from, sizeof to.word);
#endif
    }
}
template <bool kWhole, class T>
FLASHOPTIM_INLINE void store_run(void* buffer, const Words<T>& from, const Run& run) {
    T* const to = static_cast<T*>(buffer) + run.element;
    if constexpr (!kWhole) {
        FLASHOPTIM_UNROLL
        for (int e = 0; e < kElements; ++e) {
            if (e < run.count) to[e] = moved_down<T>(from.word[e / Words<T>::kInWord], e % Words<T>::kInWord);
        }
    } else {
#if defined(__CUDA_ARCH__)
        if constexpr (Words<T>::kWords == 2) {
            __stcs(reinterpret_cast<uint2*>(to), make_uint2(from.word[0], from.word[1]));
        } else {
            FLASHOPTIM_UNROLL
            for (int n = 0; n < Words<T>::kWords; n += 4) {
                __stcs(reinterpret_cast<uint4*>(to) + n / 4,
                       make_uint4(from.word[n], from.word[n + 1], from.word[n + 2], from.word[n + 3]));
            }
        }
#else
        std::memcpy(to, from.word, sizeof from.word);
#endif
    }
}

/// Loads the gradient of a run in its own dtype.
template <bool kWhole>
FLASHOPTIM_INLINE void load_gradient(Words<float>& to, const DeviceTensor& t, const Run& run) {
    if (t.gradient_dtype == DType::kFloat32) {
        load_run<kWhole>(to, t.gradient, run);
    } else {
        Words<std::uint16_t> half;
        load_run<kWhole>(half, t.gradient, run);
        FLASHOPTIM_UNROLL
        for (int n = 0; n < Words<std::uint16_t>::kWords; ++n) to.word[n] = half.word[n];
    }
}
/// Converts the gradient to fp32 and multiplies it by `factor`.
FLASHOPTIM_INLINE void convert_gradient(float (&to)[kElements], const Words<float>& from, DType dtype,
                                        float factor) {
    const auto* const half = reinterpret_cast<const std::uint16_t*>(from.word);
    if (dtype == DType::kBFloat16) {
        FLASHOPTIM_UNROLL
        for (int e = 0; e < kElements; ++e) {
            to[e] = CudaLanes::from_bits(CudaLanes::load_high_u16(half, e)) * factor;
        }
    } else if (dtype == DType::kFloat16) {
        FLASHOPTIM_UNROLL
        for (int e = 0; e < kElements; ++e) {
            to[e] = float16_to_float<CudaLanes>(CudaLanes::load_high_u16(half, e) >> 16U) * factor;
        }
    } else {
        FLASHOPTIM_UNROLL
        for (int e = 0; e < kElements; ++e) to[e] = CudaLanes::from_bits(from.word[e]) * factor;
    }
}

/// The factor of a tensor's gradient, with the sign of `maximize`.
FLASHOPTIM_INLINE float gradient_factor(const DeviceTensor& t, const Control& control) {
    const float factor = t.gradient_factor * control.gradient_factor;
    return t.negates_gradient ? -factor : factor;
}

/// Whether a gradient is bad: NaN, Inf or |g| >= 2^48 (docs/formats.md).
FLASHOPTIM_INLINE bool is_bad_gradient(float g) { return !(absolute<CudaLanes>(g) < 0x1p48F); }

}  // namespace flashoptim::cuda
