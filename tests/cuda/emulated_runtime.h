// Controls of the emulated CUDA runtime for tests, and its counters. They hold for the whole process
// and may be used in any thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace flashoptim::cuda::emulated {

/// Devices of this process: 1 at first. 0 is a machine without one. None of them is in use then, and
/// the first is this thread's.
void set_device_count(int count);
/// As cudaDriverGetVersion tells it; at first that of the runtime. An older driver serves nothing.
void set_driver_version(int version);
/// Whether a thread has made the device current, or allocated there.
bool is_in_use(int device);

/// The call of this name that comes after `successes` more fails once with `error`: "cudaMalloc", ...; the
/// launch of a kernel is "cudaLaunchKernelExC", and its load, by whatever call, "cudaFuncGetAttributes".
void fail(const char* call, cudaError_t error, int successes = 0);

/// For tests in which memory ends. Each allocation on a device or in page-locked memory, of a stream or event
/// and each load of a kernel asks may_succeed() first; what the emulation itself keeps is allocated between
/// pause(true) and pause(false).
struct MemoryHooks {
    bool (*may_succeed)() = nullptr;
    void (*pause)(bool begins) = nullptr;
};
void set_memory_hooks(MemoryHooks hooks);
/// While one lives, what this thread allocates is the emulation's own.
class OwnMemory {
public:
    OwnMemory();
    ~OwnMemory();
    OwnMemory(const OwnMemory&) = delete;
    OwnMemory& operator=(const OwnMemory&) = delete;
};

using Kernel = void (*)();
/// What the launch of a kernel does first. It loads one that is not loaded.
cudaError_t launched(Kernel kernel);
/// Loads a kernel on the current device before its launch, if it is not loaded.
cudaError_t load(Kernel kernel);
/// From now on no kernel is loaded, as when the process began.
void unload_kernels();

/// Whether work on this stream is being captured: then it cannot be waited for, and while any is, threads
/// whose mode of capture is not relaxed cannot allocate and wait at all.
void set_captured(cudaStream_t stream, bool is_captured);

/// Bytes of device memory that are allocated.
std::size_t allocated_bytes(int device);
/// The device on which this address was allocated; -1 for memory of the host.
int device_of(const void* memory);
/// Times that a thread waited for a stream or an event.
std::size_t waits();

}  // namespace flashoptim::cuda::emulated
