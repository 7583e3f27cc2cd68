// The one macro that lets the ground headers (numeric, format, rule) compile for the host and as CUDA device code.
#pragma once

#if defined(__CUDACC__)
#define FLASHOPTIM_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
// Always inlined: the same template compiled for two instruction sets must never be merged by the linker.
#define FLASHOPTIM_INLINE inline __attribute__((always_inline))
#else
#define FLASHOPTIM_INLINE inline
#endif

// Before a loop over a few vectors that are to stay in registers.
#if defined(__CUDA_ARCH__) || (defined(__clang__) && !defined(__CUDACC__))
#define FLASHOPTIM_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define FLASHOPTIM_UNROLL
#elif defined(__GNUC__)
#define FLASHOPTIM_UNROLL _Pragma("GCC unroll 8")
#else
#define FLASHOPTIM_UNROLL
#endif
