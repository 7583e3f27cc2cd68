// Controls of the emulated runtime inside the package's library, which Python tests call by ctypes.
#include "emulated_runtime.h"

extern "C" [[gnu::visibility("default")]] void flashoptim_emulated_fail(const char* call, int error,
                                                                        int successes);
extern "C" [[gnu::visibility("default")]] void flashoptim_emulated_unload_kernels();
extern "C" void flashoptim_emulated_fail(const char* call, int error, int successes) {
    flashoptim::cuda::emulated::fail(call, static_cast<cudaError_t>(error), successes);
}
extern "C" void flashoptim_emulated_unload_kernels() { flashoptim::cuda::emulated::unload_kernels(); }
