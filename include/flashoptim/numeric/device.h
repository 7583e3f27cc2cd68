// What lets the ground headers (numeric, format, rule) compile for the host and as CUDA device code, and more than once in one
// program: for several instruction sets.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

// The inline namespace of everything that computes. A file whose compiler may use an instruction set of its own names it before it
// includes anything: then no two files share a function, and the linker cannot give one processor another's instructions. Plain
// data that such files exchange stays outside of it.
#if !defined(FLASHOPTIM_ISA)
#define FLASHOPTIM_ISA isa_baseline
#endif

#if defined(__CUDACC__)
#define FLASHOPTIM_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
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

#endif
