// What the tests of the CUDA kernels step with, on a GPU or emulated: cuda::StepPlan over copies of
// the tensors in device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <optional>

#include "flashoptim/cuda.h"
#include "need_device.h"
#include "tensors.h"

namespace flashoptim::cuda {

/// A block of device memory.
class DeviceCopy {
public:
    explicit DeviceCopy(std::size_t bytes) : bytes_(bytes) { check(cudaMalloc(&data_, bytes)); }
    ~DeviceCopy() { (void)cudaFree(data_); }
    DeviceCopy(const DeviceCopy&) = delete;
    DeviceCopy& operator=(const DeviceCopy&) = delete;
    void upload(const void* from) { upload(from, bytes_); }
    /// It is there when this returns, for streams that do not wait for the default one, too.
    void upload(const void* from, std::size_t bytes) {
        check(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice));
        check(cudaStreamSynchronize(nullptr));
    }
    void download(void* to) const { check(cudaMemcpy(to, data_, bytes_, cudaMemcpyDeviceToHost)); }
    template <class T>
    [[nodiscard]] T* as() const {
        return static_cast<T*>(data_);
    }
    static void check(cudaError_t status) {
        if (status != cudaSuccess) throw CudaError(cudaGetErrorString(status));
    }

private:
    void* data_ = nullptr;
    std::size_t bytes_;
};

/// The buffers of a set in device memory, at the same places between multiples of 16 bytes.
class DeviceSet {
public:
    std::vector<StepItem> items;

    explicit DeviceSet(TensorSet& set) : items(set.items()) {
        set.for_each_buffer([&](std::byte* data, std::size_t bytes) {
            copies_.emplace(data, std::make_unique<DeviceCopy>(bytes));
        });
        upload();
        for (auto& item : items) {
            item.weight = translated(item.weight);
            item.gradient = translated(item.gradient);
            for (auto*& buffer : item.state.buffers) buffer = translated(buffer);
        }
    }
    void upload() {
        for (auto& [data, copy] : copies_) copy->upload(data);
    }
    void download() {
        for (auto& [data, copy] : copies_) copy->download(data);
    }

private:
    void* translated(const void* host) {
        if (host == nullptr) return nullptr;
        auto* const place = static_cast<std::byte*>(const_cast<void*>(host));
        const auto& [data, copy] = *std::prev(copies_.upper_bound(place));
        return copy->as<std::byte>() + (place - data);
    }
    std::map<std::byte*, std::unique_ptr<DeviceCopy>> copies_;
};

/// Two tensors in the native format.
inline TensorSet two_tensors(const RuleCase& rule = rule_cases()[4]) {
    return {rule,
            {"native", {Format::kNative, 24, true, 0, 0}, DType::kBFloat16},
            DType::kBFloat16,
            {{{9, 67}}, {{640}}}};
}

class Subject {
public:
    NonFinite nonfinite = NonFinite::kSkipElement;
    std::optional<std::int64_t> steps_done;
    std::optional<double> learning_rate;
    std::optional<float> grad_scale, clip_coefficient, found_inf;
    std::vector<std::uint64_t> bad_elements;

    void step(TensorSet& set) {
        DeviceSet on(set);
        StepOptions options{nonfinite, {}};
        options.device = {put<std::int64_t>(steps_, steps_done), put<double>(rate_, learning_rate),
                          put<float>(scale_, grad_scale), put<float>(clip_, clip_coefficient),
                          put<float>(inf_, found_inf)};
        plan_.step(on.items, options, nullptr);
        bad_elements.resize(on.items.size());
        plan_.bad_elements(bad_elements, nullptr);
        on.download();
        if (steps_done) steps_.download(&*steps_done);
    }
    std::uint64_t count_bad(TensorSet& set) {
        DeviceSet on(set);
        bad_elements.resize(on.items.size());
        return plan_.count_bad_gradients(on.items, {}, bad_elements, nullptr);
    }
    [[nodiscard]] bool was_skipped() const { return plan_.was_skipped(nullptr); }
    double norm(TensorSet& set) {
        DeviceSet on(set);
        plan_.grad_norm(on.items, {}, norm_.as<double>(), 1.0, clip_.as<float>(), nullptr);
        double result = 0.0;
        norm_.download(&result);
        return result;
    }

private:
    template <class T>
    static T* put(DeviceCopy& to, const std::optional<T>& value) {
        if (!value) return nullptr;
        DeviceCopy::check(cudaMemcpy(to.as<T>(), &*value, sizeof(T), cudaMemcpyHostToDevice));
        return to.as<T>();
    }

    DeviceCopy steps_{8}, rate_{8}, scale_{4}, clip_{4}, inf_{4}, norm_{8};
    StepPlan plan_;
};

}  // namespace flashoptim::cuda
