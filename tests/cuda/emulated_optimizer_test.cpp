// The framework-free optimizers over the emulated runtime: what they ask of CUDA. If these fail, they wait
// where they need not, use another device than theirs or leave something half done when device memory ends.
#include "emulated_runtime.h"
#include "optimizer_pair.h"

namespace flashoptim::cuda {

namespace {

class CudaOptimizerOnEmulation : public ::testing::Test {
    void TearDown() override {
        emulated::set_device_count(1);
        EXPECT_EQ(emulated::allocated_bytes(0), 0U);
        EXPECT_EQ(emulated::allocated_bytes(1), 0U);
    }
};

}  // namespace

// A wait in every step would leave the device idle.
TEST_F(CudaOptimizerOnEmulation, StepsWaitForNothing) {
    Pair pair(adamw(), native());
    pair.fill_gradients(1, true);
    pair.host().step();
    pair.device().step();
    const auto before = emulated::waits();
    for (int t = 0; t < 5; ++t) {
        pair.host().step();
        EXPECT_EQ(pair.device().step().bad_elements, 0U);
    }
    EXPECT_EQ(emulated::waits(), before);
    pair.expect_same();
}

TEST_F(CudaOptimizerOnEmulation, NumbersInDeviceMemoryAreNotWaitedFor) {
    Pair pair(adamw(), native());
    const PairedNumber scale(2.0F), found_inf(0.0F);
    pair.device().set_grad_scale(scale.on_device());
    pair.device().set_found_inf(found_inf.on_device());
    pair.host().set_grad_scale(scale.here());
    pair.fill_gradients(1);
    const auto step = [&] {
        pair.host().clip_grad_norm(1.0);
        pair.device().clip_grad_norm(1.0);
        pair.host().step();
        pair.device().step();
    };
    step();
    const auto waits = emulated::waits(), bytes = emulated::allocated_bytes(0);
    for (int t = 0; t < 3; ++t) step();
    EXPECT_EQ(emulated::waits(), waits);
    EXPECT_EQ(emulated::allocated_bytes(0), bytes);
    pair.expect_same();
}

// A graph's replays would repeat one step count, and what the host read of found_inf.
TEST_F(CudaOptimizerOnEmulation, CaptureIsRefusedAndChangesNothing) {
    for (const auto policy : {NonFinite::kSkipElement, NonFinite::kSkipStep}) {
        Pair pair(adamw(), native(policy));
        const PairedNumber found_inf(0.0F);
        pair.device().set_found_inf(found_inf.on_device());
        pair.fill_gradients(1);
        pair.host().clip_grad_norm(0.01);
        pair.device().clip_grad_norm(0.01);
        emulated::set_captured(nullptr, true);
        expect_refused<InvalidArgument>("cannot be captured in a CUDA graph", [&] { pair.device().step(); });
        expect_refused<InvalidArgument>("cannot be captured in a CUDA graph",
                                        [&] { (void)pair.device().grad_norm(); });
        emulated::set_captured(nullptr, false);
        pair.host().step();
        pair.device().step();  // clipped as the one that was refused
        pair.expect_same();
    }
}

TEST_F(CudaOptimizerOnEmulation, StateLiesOnItsDevice) {
    emulated::set_device_count(2);
    Pair pair(adamw(), native(), 1);
    EXPECT_GE(emulated::allocated_bytes(1), pair.device().memory_report().total());
    pair.fill_gradients(1);
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    pair.host().step();
    pair.device().step();
    EXPECT_EQ(emulated::allocated_bytes(0), 0U);
    pair.expect_same();
}

TEST_F(CudaOptimizerOnEmulation, MemoryOfAnotherDeviceIsRefused) {
    emulated::set_device_count(2);
    Tensor weight(DType::kBFloat16, {4, 8});
    const DeviceTensor on_first(weight);
    Optimizer optimizer(Rule::kLion, {}, Pair::on(native(), 1));
    expect_refused<InvalidArgument>("w lies on CUDA device 0 and its optimizer on 1: make an optimizer",
                                    [&] { optimizer.add_parameter(on_first.view(), "w"); });

    void* page_locked = nullptr;
    ASSERT_EQ(cudaMallocHost(&page_locked, weight.bytes().size()), cudaSuccess);
    auto view = weight.view();
    view.data = page_locked;
    EXPECT_NO_THROW(optimizer.add_parameter(view));
    (void)cudaFreeHost(page_locked);
}

TEST_F(CudaOptimizerOnEmulation, WithoutMemoryNothingIsAdded) {
    Pair pair(adamw(), native());
    auto& optimizer = pair.device();
    emulated::fail("cudaMalloc", cudaErrorMemoryAllocation, 2);
    Tensor large(DType::kBFloat16, {64, 64});
    const DeviceTensor on_device(large);
    expect_refused<CudaError>("out of memory", [&] { optimizer.add_parameter(on_device.view()); });
    EXPECT_EQ(optimizer.parameter_count(), 4U);
    pair.fill_gradients(1);
    pair.host().step();
    optimizer.step();
    pair.expect_same();
}

}  // namespace flashoptim::cuda
