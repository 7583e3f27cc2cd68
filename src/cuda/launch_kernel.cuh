// How kernels are started: with the error of this launch. What cudaGetLastError tells after <<<>>> may be an
// error that the application has left behind. And how they are loaded before.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace flashoptim::cuda {

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void* stream,
                          Arguments&&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.stream = static_cast<cudaStream_t>(stream);
    return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

/// CUDA loads a kernel when it is first used, which takes memory: to ask for its attributes is to use it.
template <class... Parameters>
cudaError_t load_kernel(void (*kernel)(Parameters...)) {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, kernel);
}

}  // namespace flashoptim::cuda
