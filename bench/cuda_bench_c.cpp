// C functions for bench/cuda_compare.py: the CUDA step of AdamW or Lion over the caller's tensors, with its
// own states.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "flashoptim/cuda.h"

namespace {

using namespace flashoptim;  // local to this file

struct FreeOnDevice {
    void operator()(void* p) const { (void)cudaFree(p); }
};
using DeviceBuffer = std::unique_ptr<void, FreeOnDevice>;

struct Run {
    std::vector<std::unique_ptr<Layout>> layouts;
    std::vector<DeviceBuffer> buffers;
    std::vector<StepItem> items;
    cuda::StepPlan plan;
    Rule rule = Rule::kAdamW;
    StorageOptions storage;

    void* zeros(const BufferPlan& buffer) {
        if (buffer.count == 0) return nullptr;
        void* p = nullptr;
        if (const auto status = cudaMalloc(&p, buffer.bytes()); status != cudaSuccess) {
            throw cuda::CudaError(cudaGetErrorString(status));
        }
        buffers.emplace_back(p);
        (void)cudaMemset(p, 0, buffer.bytes());
        return p;
    }
};

std::string& last_error() {
    static std::string text;
    return text;
}

template <class Action>
int guarded(Action action) {
    try {
        action();
        return 0;
    } catch (const std::exception& error) {
        last_error() = error.what();
        return 1;
    }
}

}  // namespace

extern "C" {

const char* cuda_bench_error() { return last_error().c_str(); }

/// `format` 0 native, 1 paper, 2 fp32; null on failure.
void* cuda_bench_new(int lion, int format) {
    void* result = nullptr;
    (void)guarded([&] {
        auto run = std::make_unique<Run>();
        run->rule = lion != 0 ? Rule::kLion : Rule::kAdamW;
        run->storage.format = static_cast<Format>(format);
        result = run.release();
    });
    return result;
}
void cuda_bench_delete(void* handle) { std::default_delete<Run>()(static_cast<Run*>(handle)); }

/// Adds a row-major tensor; weight and gradient are bfloat16, or float32 with `full`.
int cuda_bench_add(void* handle, const std::int64_t* shape, int dimensions, int full, void* weight,
                   const void* gradient) {
    return guarded([&] {
        auto& run = *static_cast<Run*>(handle);
        const auto dtype = full != 0 ? DType::kFloat32 : DType::kBFloat16;
        TensorView view{weight, dtype, {shape, shape + dimensions}, {}};
        view.strides = row_major_strides(view.shape);
        run.layouts.push_back(std::make_unique<Layout>(layout_of(view)));
        StepItem item;
        item.layout = run.layouts.back().get();
        item.rule = run.rule;
        item.hyperparameters.learning_rate = 1e-4;
        item.hyperparameters.weight_decay = 0.1;
        item.plan = plan_storage(run.rule, item.hyperparameters, run.storage, dtype, *item.layout);
        item.weight = weight;
        item.gradient = gradient;
        item.gradient_dtype = dtype;
        for (int place = 0; place < kMaxBuffers; ++place) {
            item.state.at(place) = run.zeros(item.plan.at(place));
        }
        run.items.push_back(item);
    });
}

int cuda_bench_step(void* handle, std::int64_t step, void* stream) {
    return guarded([&] {
        auto& run = *static_cast<Run*>(handle);
        for (auto& item : run.items) item.step = step;
        run.plan.step(run.items, {}, stream);
    });
}

}  // extern "C"
