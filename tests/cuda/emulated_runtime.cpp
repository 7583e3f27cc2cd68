// The emulated CUDA runtime: bookkeeping around memory of the host.
#include "emulated_runtime.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace flashoptim::cuda::emulated {

namespace {

struct Allocation {
    std::size_t bytes;
    int device;
};
struct Failure {
    cudaError_t error;
    int successes;
};

MemoryHooks memory_hooks;

bool may_allocate() { return memory_hooks.may_succeed == nullptr || memory_hooks.may_succeed(); }

/// Guards what the emulation keeps, for which there is always memory.
class Mutex {
public:
    void lock() {
        mutex_.lock();
        if (memory_hooks.pause != nullptr) memory_hooks.pause(true);
    }
    void unlock() {
        if (memory_hooks.pause != nullptr) memory_hooks.pause(false);
        mutex_.unlock();
    }

private:
    std::mutex mutex_;
};

struct Runtime {
    Mutex mutex;
    int device_count = 1;
    int driver_version = CUDART_VERSION;
    std::set<int> in_use;                           // devices that a thread has made current or allocated on
    std::map<const std::byte*, Allocation> memory;  // of the devices
    std::set<const void*> host_memory;              // page-locked
    std::map<std::string, Failure> failures;
    std::set<std::pair<int, Kernel>> kernels;  // that are loaded on a device
    std::set<cudaStream_t> captured;
    std::size_t waits = 0;
};
Runtime& runtime() {
    static Runtime only;
    return only;
}
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

/// What every call does first: the failure that a test wants of it.
cudaError_t failure_of(const char* call) {
    const std::scoped_lock lock(runtime().mutex);
    const auto found = runtime().failures.find(call);
    if (found == runtime().failures.end() || found->second.successes-- > 0) return cudaSuccess;
    const auto error = found->second.error;
    runtime().failures.erase(found);
    return error;
}
cudaError_t failed(cudaError_t error) {
    last_error = error;
    return error;
}

/// Every byte is set: nobody may take new memory for zeros.
void* take(std::size_t bytes) {
    if (!may_allocate()) return nullptr;
    constexpr std::size_t kAlignment = 256;  // of cudaMalloc
    constexpr int kGarbage = 0xA5;
    const auto size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* const memory = std::aligned_alloc(kAlignment, size);
    if (memory != nullptr) std::memset(memory, kGarbage, bytes);
    return memory;
}
cudaError_t failure_while_captured(const char* call) {
    if (const auto error = failure_of(call); error != cudaSuccess) return error;
    const std::scoped_lock lock(runtime().mutex);
    const bool may = runtime().captured.empty() || capture_mode == cudaStreamCaptureModeRelaxed;
    return may ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}
cudaError_t wait(const char* call) {
    if (const auto error = failure_while_captured(call); error != cudaSuccess) return failed(error);
    const std::scoped_lock lock(runtime().mutex);
    ++runtime().waits;
    return cudaSuccess;
}
bool is_loaded(Kernel kernel) {
    const std::scoped_lock lock(runtime().mutex);
    return runtime().kernels.count({current_device, kernel}) != 0;
}
void set_loaded(Kernel kernel) {
    const std::scoped_lock lock(runtime().mutex);
    runtime().kernels.insert({current_device, kernel});
    runtime().in_use.insert(current_device);
}
bool is_captured(cudaStream_t stream) {
    const std::scoped_lock lock(runtime().mutex);
    return runtime().captured.count(stream) != 0;
}

}  // namespace

void set_memory_hooks(MemoryHooks hooks) { memory_hooks = hooks; }
OwnMemory::OwnMemory() {
    if (memory_hooks.pause != nullptr) memory_hooks.pause(true);
}
OwnMemory::~OwnMemory() {
    if (memory_hooks.pause != nullptr) memory_hooks.pause(false);
}
void set_device_count(int count) {
    const std::scoped_lock lock(runtime().mutex);
    runtime().device_count = count;
    runtime().in_use.clear();
    current_device = 0;
}
void set_driver_version(int version) {
    const std::scoped_lock lock(runtime().mutex);
    runtime().driver_version = version;
}
bool is_in_use(int device) {
    const std::scoped_lock lock(runtime().mutex);
    return runtime().in_use.count(device) != 0;
}
void fail(const char* call, cudaError_t error, int successes) {
    const std::scoped_lock lock(runtime().mutex);
    runtime().failures[call] = {error, successes};
}
cudaError_t launched(Kernel kernel) {
    auto error = is_loaded(kernel) ? cudaSuccess : failure_of("cudaFuncGetAttributes");
    if (error == cudaSuccess && !is_loaded(kernel) && !may_allocate()) error = cudaErrorMemoryAllocation;
    if (error == cudaSuccess) set_loaded(kernel);
    if (error == cudaSuccess) error = failure_of("cudaLaunchKernelExC");
    return error == cudaSuccess ? cudaSuccess : failed(error);
}
cudaError_t load(Kernel kernel) {
    if (is_loaded(kernel)) return cudaSuccess;
    if (const auto error = failure_while_captured("cudaFuncGetAttributes"); error != cudaSuccess)
        return failed(error);
    if (!may_allocate()) return failed(cudaErrorMemoryAllocation);
    set_loaded(kernel);
    return cudaSuccess;
}
void unload_kernels() {
    const std::scoped_lock lock(runtime().mutex);
    runtime().kernels.clear();
}
void set_captured(cudaStream_t stream, bool is_captured) {
    const std::scoped_lock lock(runtime().mutex);
    if (is_captured) {
        runtime().captured.insert(stream);
    } else {
        runtime().captured.erase(stream);
    }
}
std::size_t allocated_bytes(int device) {
    const std::scoped_lock lock(runtime().mutex);
    std::size_t total = 0;
    for (const auto& [memory, allocation] : runtime().memory) {
        if (allocation.device == device) total += allocation.bytes;
    }
    return total;
}
int device_of(const void* memory) {
    const std::scoped_lock lock(runtime().mutex);
    const auto* const address = static_cast<const std::byte*>(memory);
    const auto next = runtime().memory.upper_bound(address);
    if (next == runtime().memory.begin()) return -1;
    const auto& [begin, allocation] = *std::prev(next);
    return address < begin + allocation.bytes ? allocation.device : -1;
}
std::size_t waits() {
    const std::scoped_lock lock(runtime().mutex);
    return runtime().waits;
}

}  // namespace flashoptim::cuda::emulated

using namespace flashoptim::cuda::emulated;  // NOLINT(google-build-using-namespace): the functions of C below

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation:
            return "cudaErrorMemoryAllocation";
        case cudaErrorInitializationError:
            return "cudaErrorInitializationError";
        case cudaErrorInsufficientDriver:
            return "cudaErrorInsufficientDriver";
        case cudaErrorNoKernelImageForDevice:
            return "cudaErrorNoKernelImageForDevice";
        case cudaErrorUnsupportedPtxVersion:
            return "cudaErrorUnsupportedPtxVersion";
        case cudaErrorIllegalAddress:
            return "cudaErrorIllegalAddress";
        case cudaErrorNoDevice:
            return "cudaErrorNoDevice";
        case cudaErrorInvalidDevice:
            return "cudaErrorInvalidDevice";
        case cudaErrorInvalidDeviceFunction:
            return "cudaErrorInvalidDeviceFunction";
        case cudaErrorStreamCaptureUnsupported:
            return "cudaErrorStreamCaptureUnsupported";
    }
    return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : cudaGetErrorName(error);
}
cudaError_t cudaGetLastError() {
    const auto error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaDriverGetVersion(int* version) {
    const std::scoped_lock lock(runtime().mutex);
    *version = runtime().driver_version;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
    if (const auto error = failure_of("cudaGetDeviceCount"); error != cudaSuccess) return failed(error);
    const std::scoped_lock lock(runtime().mutex);
    if (runtime().driver_version < CUDART_VERSION) return failed(cudaErrorInsufficientDriver);
    *count = runtime().device_count;
    return *count == 0 ? failed(cudaErrorNoDevice) : cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    if (const auto error = failure_of("cudaGetDevice"); error != cudaSuccess) return failed(error);
    *device = current_device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (const auto error = failure_of("cudaSetDevice"); error != cudaSuccess) return failed(error);
    const std::scoped_lock lock(runtime().mutex);
    if (device < 0 || device >= runtime().device_count) return failed(cudaErrorInvalidDevice);
    current_device = device;
    runtime().in_use.insert(device);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    if (const auto error = failure_while_captured("cudaMalloc"); error != cudaSuccess) return failed(error);
    *memory = bytes == 0 ? nullptr : take(bytes);
    if (*memory == nullptr) return bytes == 0 ? cudaSuccess : failed(cudaErrorMemoryAllocation);
    const std::scoped_lock lock(runtime().mutex);
    runtime().memory[static_cast<const std::byte*>(*memory)] = {bytes, current_device};
    runtime().in_use.insert(current_device);
    return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
    if (const auto error = failure_while_captured("cudaFree"); error != cudaSuccess) return failed(error);
    if (memory == nullptr) return cudaSuccess;
    const std::scoped_lock lock(runtime().mutex);
    runtime().in_use.insert(current_device);
    if (runtime().memory.erase(static_cast<const std::byte*>(memory)) == 0)
        return failed(cudaErrorInvalidValue);
    std::free(memory);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
    if (const auto error = failure_while_captured("cudaMallocHost"); error != cudaSuccess)
        return failed(error);
    *memory = take(bytes);
    if (*memory == nullptr) return failed(cudaErrorMemoryAllocation);
    const std::scoped_lock lock(runtime().mutex);
    runtime().host_memory.insert(*memory);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
    if (const auto error = failure_while_captured("cudaFreeHost"); error != cudaSuccess) return failed(error);
    const std::scoped_lock lock(runtime().mutex);
    runtime().host_memory.erase(memory);
    std::free(memory);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
    const int device = device_of(memory);
    const std::scoped_lock lock(runtime().mutex);
    const bool is_page_locked = runtime().host_memory.count(memory) != 0;
    const auto type = device >= 0      ? cudaMemoryTypeDevice
                      : is_page_locked ? cudaMemoryTypeHost
                                       : cudaMemoryTypeUnregistered;
    *attributes = {type, device, nullptr, nullptr, {}};
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind /*kind*/) {
    if (const auto error = failure_while_captured("cudaMemcpy"); error != cudaSuccess) return failed(error);
    if (bytes != 0) std::memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind /*kind*/,
                            cudaStream_t /*stream*/) {
    if (const auto error = failure_of("cudaMemcpyAsync"); error != cudaSuccess) return failed(error);
    if (bytes != 0) std::memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t /*stream*/) {
    if (const auto error = failure_of("cudaMemsetAsync"); error != cudaSuccess) return failed(error);
    if (bytes != 0) std::memset(to, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
    if (const auto error = failure_of("cudaStreamCreateWithFlags"); error != cudaSuccess)
        return failed(error);
    *stream = static_cast<cudaStream_t>(take(1));  // an address of its own
    return *stream == nullptr ? failed(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    std::free(stream);
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    std::swap(*mode, capture_mode);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return is_captured(stream) ? failed(cudaErrorStreamCaptureUnsupported) : wait("cudaStreamSynchronize");
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    if (const auto error = failure_of("cudaStreamIsCapturing"); error != cudaSuccess) return failed(error);
    *status = is_captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
    if (const auto error = failure_of("cudaEventCreateWithFlags"); error != cudaSuccess) return failed(error);
    *event = static_cast<cudaEvent_t>(take(1));  // an address of its own
    return *event == nullptr ? failed(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    std::free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t /*event*/, cudaStream_t /*stream*/) {
    const auto error = failure_of("cudaEventRecord");
    return error == cudaSuccess ? cudaSuccess : failed(error);
}
cudaError_t cudaEventSynchronize(cudaEvent_t /*event*/) { return wait("cudaEventSynchronize"); }
