// Macros for the .cu files. They instantiate the kernels of one rule and moment format for every weight
// format.
#pragma once

#include "cuda/kernels.cuh"

#define FLASHOPTIM_STEP_KERNEL(R, M, ...)                                                                \
    template cudaError_t launch_step<R, MomentsFor<R, M, __VA_ARGS__>::Type, __VA_ARGS__>(const Launch&, \
                                                                                          void*);        \
    template cudaError_t load_step<R, MomentsFor<R, M, __VA_ARGS__>::Type, __VA_ARGS__>();

#define FLASHOPTIM_NATIVE_WEIGHTS(R, M)                  \
    FLASHOPTIM_STEP_KERNEL(R, M, NativeFloat32Weight)    \
    FLASHOPTIM_STEP_KERNEL(R, M, Bfloat16Weight24)       \
    FLASHOPTIM_STEP_KERNEL(R, M, Bfloat16Weight32)       \
    FLASHOPTIM_STEP_KERNEL(R, M, Bfloat16WeightDithered) \
    FLASHOPTIM_STEP_KERNEL(R, M, Bfloat16WeightNearest)  \
    FLASHOPTIM_STEP_KERNEL(R, M, Float16Weight24)        \
    FLASHOPTIM_STEP_KERNEL(R, M, Float16Weight32)        \
    FLASHOPTIM_STEP_KERNEL(R, M, Float16WeightDithered)  \
    FLASHOPTIM_STEP_KERNEL(R, M, Float16WeightNearest)

#define FLASHOPTIM_PAPER_WEIGHTS(R, M)                                     \
    FLASHOPTIM_STEP_KERNEL(R, M, PaperFloat32Weight)                       \
    FLASHOPTIM_STEP_KERNEL(R, M, PaperWeight<PaperBfloat16, std::int8_t>)  \
    FLASHOPTIM_STEP_KERNEL(R, M, PaperWeight<PaperBfloat16, std::int16_t>) \
    FLASHOPTIM_STEP_KERNEL(R, M, PaperPlainWeight<PaperBfloat16>)          \
    FLASHOPTIM_STEP_KERNEL(R, M, PaperWeight<PaperFloat16, std::int8_t>)   \
    FLASHOPTIM_STEP_KERNEL(R, M, PaperWeight<PaperFloat16, std::int16_t>)  \
    FLASHOPTIM_STEP_KERNEL(R, M, PaperPlainWeight<PaperFloat16>)
