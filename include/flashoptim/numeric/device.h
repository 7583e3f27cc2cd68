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
