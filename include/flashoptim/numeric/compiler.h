// Compiler macros for the headers of numeric/, format/ and rule/: they compile for the host and as CUDA
// device code, and for several instruction sets in one program.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

// The inline namespace of all code that computes. A source file that is compiled for its own instruction set
// defines it before any include. So no two such files share a function, and the linker cannot choose a copy
// with instructions that the processor lacks. Plain data that these files exchange is outside this namespace.
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

// Unrolls a loop over a few vectors, so that they stay in registers.
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
