// Device memory that can grow, and uploads that do not block.
#pragma once

#include <array>
#include <cstddef>
#include <utility>

#include "cuda/runtime.h"

namespace flashoptim::cuda {

/// Memory of the current device, or page-locked host memory.
template <bool kOnDevice>
class CudaMemory {
public:
    CudaMemory() = default;
    ~CudaMemory() { release(); }
    CudaMemory(const CudaMemory&) = delete;
    CudaMemory& operator=(const CudaMemory&) = delete;
    CudaMemory(CudaMemory&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    CudaMemory& operator=(CudaMemory&& other) noexcept {
        if (this == &other) return *this;
        release();
        data_ = std::exchange(other.data_, nullptr);
        size_ = std::exchange(other.size_, 0);
        return *this;
    }

    /// Makes the memory at least `bytes` large. Growing loses the content. If there is no memory, nothing
    /// changes.
    void reserve(std::size_t bytes) {
        if (!holds(bytes)) *this = of(bytes);
    }
    /// Allocates at least `bytes`, with room to grow.
    static CudaMemory of(std::size_t bytes) {
        CudaMemory memory;
        const std::size_t size = bytes + bytes / 4;
        if constexpr (kOnDevice) {
            check_cuda(cudaMalloc(&memory.data_, size), "cudaMalloc");
        } else {
            check_cuda(cudaMallocHost(&memory.data_, size), "cudaMallocHost");
        }
        memory.size_ = size;
        return memory;
    }
    [[nodiscard]] bool holds(std::size_t bytes) const { return bytes <= size_; }
    template <class T>
    [[nodiscard]] T* as() const {
        return static_cast<T*>(data_);
    }

    void release() {
        if (data_ == nullptr) return;
        if constexpr (kOnDevice) {
            ignore_failure(cudaFree(data_));
        } else {
            ignore_failure(cudaFreeHost(data_));
        }
        data_ = nullptr;
        size_ = 0;
    }

private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

/// A separate stream on which a thread may allocate, copy and wait while it captures another stream.
class UncapturedStream {
public:
    UncapturedStream() {
        check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    }
    ~UncapturedStream() { ignore_failure(cudaStreamDestroy(stream_)); }
    UncapturedStream(const UncapturedStream&) = delete;
    UncapturedStream& operator=(const UncapturedStream&) = delete;

    [[nodiscard]] cudaStream_t get() const { return stream_; }
    void wait() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

private:
    RelaxedCapture relaxed_;
    cudaStream_t stream_ = nullptr;
};

/// Copies to the device through page-locked memory. It has two buffers, so an upload blocks only until the
/// upload before the last one is done.
class Uploader {
public:
    Uploader() = default;
    ~Uploader() {
        for (auto& slot : slots_) {
            if (slot.done != nullptr) ignore_failure(cudaEventDestroy(slot.done));
        }
    }
    Uploader(const Uploader&) = delete;
    Uploader& operator=(const Uploader&) = delete;

    /// Calls write(memory), which fills `bytes` of page-locked memory, and enqueues the copy.
    template <class Write>
    void upload(void* to, std::size_t bytes, Write write, cudaStream_t stream) {
        if (bytes == 0) return;
        auto& slot = slots_[next_];
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
        next_ = (next_ + 1) % slots_.size();
    }

private:
    struct Slot {
        CudaMemory<false> memory;
        cudaEvent_t done = nullptr;
    };
    std::array<Slot, 2> slots_;
    std::size_t next_ = 0;
};

}  // namespace flashoptim::cuda
