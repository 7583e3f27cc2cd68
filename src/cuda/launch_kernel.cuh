// Launches and loads kernels. A launch returns its own error. cudaGetLastError after <<<>>> might return an
// error that the application has left behind.
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

/// Loads a kernel. CUDA loads a kernel, which takes memory, at its first use; a query of its attributes is a
/// use.
template <class... Parameters>
cudaError_t load_kernel(void (*kernel)(Parameters...)) {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, kernel);
}

}  // namespace flashoptim::cuda
