// Device memory that grows, uploads that do not wait, and errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <string>

#include "flashoptim/cuda.h"

namespace flashoptim::cuda {

inline void check_cuda(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // it has been told: nobody shall find it again
    throw Error(std::string(call) + " failed with " + cudaGetErrorName(status) + " (" +
                cudaGetErrorString(status) +
                "): see whether driver, device and free memory are what the program needs");
}

/// Makes a device current and puts the former one back.
class CurrentDevice {
public:
    explicit CurrentDevice(int device) {
        check_cuda(cudaGetDevice(&former_), "cudaGetDevice");
        if (former_ == device) {
            former_ = -1;
        } else {
            check_cuda(cudaSetDevice(device), "cudaSetDevice");
        }
    }
    ~CurrentDevice() {
        if (former_ >= 0) (void)cudaSetDevice(former_);
    }
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

private:
    int former_ = -1;
};

/// Memory of the current device, or page-locked memory of the host.
template <bool kOnDevice>
class Memory {
public:
    Memory() = default;
    ~Memory() { release(); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    /// At least `bytes`; what was there is lost when it grows.
    void reserve(std::size_t bytes) {
        if (bytes <= size_) return;
        release();
        const std::size_t size = bytes + bytes / 4;
        if constexpr (kOnDevice) {
            check_cuda(cudaMalloc(&data_, size), "cudaMalloc");
        } else {
            check_cuda(cudaMallocHost(&data_, size), "cudaMallocHost");
        }
        size_ = size;
    }
    [[nodiscard]] bool holds(std::size_t bytes) const { return bytes <= size_; }
    template <class T>
    [[nodiscard]] T* as() const {
        return static_cast<T*>(data_);
    }

private:
    void release() {
        if (data_ == nullptr) return;
        if constexpr (kOnDevice) {
            (void)cudaFree(data_);
        } else {
            (void)cudaFreeHost(data_);
        }
        data_ = nullptr;
        size_ = 0;
    }
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

/// A stream of our own on which a thread may allocate, copy and wait while it captures another.
class UncapturedStream {
public:
    UncapturedStream() {
        check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode");
        const auto status = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
        if (status != cudaSuccess) (void)cudaThreadExchangeStreamCaptureMode(&mode_);
        check_cuda(status, "cudaStreamCreateWithFlags");
    }
    ~UncapturedStream() {
        (void)cudaStreamDestroy(stream_);
        (void)cudaThreadExchangeStreamCaptureMode(&mode_);
    }
    UncapturedStream(const UncapturedStream&) = delete;
    UncapturedStream& operator=(const UncapturedStream&) = delete;

    [[nodiscard]] cudaStream_t get() const { return stream_; }
    void wait() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
    cudaStream_t stream_ = nullptr;
};

/// Copies to the device through page-locked memory, two uploads at a time: only a third waits for the first.
class Uploader {
public:
    Uploader() = default;
    ~Uploader() {
        for (auto& slot : slots_) {
            if (slot.done != nullptr) (void)cudaEventDestroy(slot.done);
        }
    }
    Uploader(const Uploader&) = delete;
    Uploader& operator=(const Uploader&) = delete;

    /// write(memory) is to fill `bytes` of page-locked memory.
    template <class Write>
    void upload(void* to, std::size_t bytes, Write write, cudaStream_t stream) {
        if (bytes == 0) return;
        auto& slot = slots_[next_];
        next_ = (next_ + 1) % slots_.size();
        if (slot.done == nullptr) {
            check_cuda(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming),
                       "cudaEventCreateWithFlags");
        } else {
            check_cuda(cudaEventSynchronize(slot.done), "cudaEventSynchronize");
        }
        slot.memory.reserve(bytes);
        write(slot.memory.template as<std::byte>());
        check_cuda(
            cudaMemcpyAsync(to, slot.memory.template as<void>(), bytes, cudaMemcpyHostToDevice, stream),
            "cudaMemcpyAsync");
        check_cuda(cudaEventRecord(slot.done, stream), "cudaEventRecord");
    }

private:
    struct Slot {
        Memory<false> memory;
        cudaEvent_t done = nullptr;
    };
    std::array<Slot, 2> slots_;
    std::size_t next_ = 0;
};

}  // namespace flashoptim::cuda
