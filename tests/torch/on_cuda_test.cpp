// The LibTorch optimizers where the CUDA backend steps them, emulated: tensors of the CPU stand for those of a device. The other tests
// of this room run here too; these are of what is particular to a device.
#include "../cuda/emulated_runtime.h"
#include "flashoptim/cuda.h"
#include "support.h"

namespace flashoptim::libtorch {

std::uint64_t reported_at_once(std::uint64_t /*count*/) { return 0; }

namespace {

class OnCuda : public ::testing::Test {
    void TearDown() override { cuda::emulated::set_device_count(1); }
};

torch::Tensor parameter_with_gradient(double bad = 0.5) {
    auto parameter = torch::ones({8, 64}, torch::kBFloat16).requires_grad_();
    parameter.mutable_grad() = torch::full({8, 64}, 0.25, torch::kBFloat16);
    parameter.mutable_grad()[3][5] = bad;
    return parameter;
}

}  // namespace

// A wait in every step would leave the device idle.
TEST_F(OnCuda, StepWaitsForNothingAndCountsLater) {
    auto parameter = parameter_with_gradient(NAN);
    AdamW optimizer({parameter}, 1e-2);
    const auto before = cuda::emulated::waits();
    for (int t = 1; t <= 3; ++t) {
        optimizer.step();
        EXPECT_EQ(optimizer.last_step().bad_elements, 0U);
    }
    EXPECT_EQ(cuda::emulated::waits(), before);
    EXPECT_GT(cuda::emulated::allocated_bytes(0), 0U);  // it was the CUDA backend
    EXPECT_EQ(optimizer.bad_elements(parameter), 3);
    EXPECT_EQ(optimizer.bad_elements(), 3);
    EXPECT_EQ(parameter[3][5].item<float>(), 1.0F);
    EXPECT_LT(parameter[3][6].item<float>(), 1.0F);
}

TEST_F(OnCuda, LoadedCountsReplaceThoseOfTheDevice) {
    auto parameter = parameter_with_gradient(NAN);
    AdamW optimizer({parameter}, 1e-2);
    optimizer.step();
    torch::serialize::OutputArchive saved;
    optimizer.save(saved);
    std::ostringstream bytes;
    saved.save_to(bytes);
    optimizer.step();
    std::istringstream from(bytes.str());
    torch::serialize::InputArchive archive;
    archive.load_from(from);
    optimizer.load(archive);
    EXPECT_EQ(optimizer.bad_elements(parameter), 1);
    optimizer.set_bad_elements(parameter, 7);
    optimizer.step();
    EXPECT_EQ(optimizer.bad_elements(parameter), 8);
}

TEST_F(OnCuda, WhatCudaRefusesIsNamedAndChangesNothing) {
    auto parameter = parameter_with_gradient();
    AdamW optimizer({parameter}, 1e-2);
    cuda::emulated::set_device_count(0);
    EXPECT_THROW(optimizer.step(), cuda::Error);
    EXPECT_TRUE(torch::equal(parameter, torch::ones_like(parameter)));
    EXPECT_EQ(optimizer.step_count(parameter), 0);
    cuda::emulated::set_device_count(1);
    cuda::emulated::fail("cudaMalloc", cudaErrorMemoryAllocation, 1);
    EXPECT_THROW(optimizer.step(), cuda::Error);
    EXPECT_EQ(optimizer.step_count(parameter), 0);
    optimizer.step();
    EXPECT_EQ(optimizer.step_count(parameter), 1);
}

// On another device than the CPU and CUDA nothing can be stepped.
TEST_F(OnCuda, OtherDevicesAreRefused) {
    const auto meta = torch::ones({4}, torch::device(torch::kMeta));
    EXPECT_THROW(AdamW({meta}, 1e-2), InvalidArgument);
}

}  // namespace flashoptim::libtorch
