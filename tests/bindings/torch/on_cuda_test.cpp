// The LibTorch optimizers where the CUDA backend steps them, emulated: tensors of the CPU stand for those of
// a device. The other tests of this folder run here too; these are for what is particular to a device.
#include "../../cuda/emulated_runtime.h"
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
    EXPECT_THROW(optimizer.step(), cuda::CudaError);
    EXPECT_TRUE(torch::equal(parameter, torch::ones_like(parameter)));
    EXPECT_EQ(optimizer.step_count(parameter), 0);
    cuda::emulated::set_device_count(1);
    cuda::emulated::fail("cudaMalloc", cudaErrorInvalidValue, 1);
    EXPECT_THROW(optimizer.step(), cuda::CudaError);
    EXPECT_EQ(optimizer.step_count(parameter), 0);
    optimizer.step();
    EXPECT_EQ(optimizer.step_count(parameter), 1);
}

// What clips, scales and keeps back is read on the device: a wait for it in every step
// would leave the device idle.
TEST_F(OnCuda, ClippingAndLossScalesWaitForNothing) {
    auto parameter = parameter_with_gradient();
    AdamW optimizer({parameter}, 1e-2);
    optimizer.set_grad_scale(torch::full({}, 4.0F));
    optimizer.set_found_inf(torch::zeros({1}));
    std::size_t before = 0;
    for (int t = 1; t <= 4; ++t) {
        optimizer.clip_grad_norm(0.5);
        optimizer.step();
        if (t == 1) before = cuda::emulated::waits();  // the list was new, first without states
    }
    EXPECT_EQ(cuda::emulated::waits(), before);
    EXPECT_EQ(optimizer.step_count(parameter), 4);
}

// Two networks that take turns, or experts of which some are idle, change the set of gradients in every step.
TEST_F(OnCuda, OtherSetsOfGradientsAreNotWaitedFor) {
    std::vector<torch::Tensor> all, gradients;
    for (int n = 0; n < 7; ++n) {
        all.push_back(parameter_with_gradient(NAN));
        gradients.push_back(all.back().grad());
    }
    AdamW optimizer(all, 1e-2);
    std::vector<std::int64_t> steps(all.size());
    const auto step_with = [&](std::size_t set) {
        for (std::size_t n = 0; n < all.size(); ++n) {
            const bool has = (set >> n & 1U) != 0;
            all[n].mutable_grad() = has ? gradients[n] : torch::Tensor();
            steps[n] += has ? 1 : 0;
        }
        optimizer.step();
    };
    step_with(1);
    step_with(6);
    const auto before = cuda::emulated::waits();
    for (const std::size_t set : {1U, 6U, 1U, 6U}) step_with(set);
    EXPECT_EQ(cuda::emulated::waits(), before) << "of two sets the device knows both";
    cuda::emulated::fail("cudaStreamSynchronize", cudaErrorInvalidValue);
    for (const std::size_t set : {7U, 1U, 2U, 6U, 7U}) step_with(set);
    EXPECT_THROW((void)optimizer.bad_elements(), cuda::CudaError) << "a step has waited for the device";
    for (std::size_t set = 1; set < 128; ++set) step_with(set);
    for (std::size_t n = 0; n < all.size(); ++n) {
        EXPECT_EQ(optimizer.bad_elements(all[n]), steps[n]);
        EXPECT_EQ(optimizer.step_count(all[n]), steps[n]);
    }
}

// Its replays would repeat one step count and learning rate.
TEST_F(OnCuda, CaptureIsRefusedAndChangesNothing) {
    for (const bool has_stepped : {false, true}) {
        auto parameter = parameter_with_gradient();
        AdamW optimizer({parameter}, 1e-2);
        if (has_stepped) optimizer.step();
        const auto before = parameter.detach().clone();
        cuda::emulated::set_captured(nullptr, true);
        const auto of_step = message_of<InvalidArgument>([&] { optimizer.step(); });
        const auto of_norm = message_of<InvalidArgument>([&] { optimizer.clip_grad_norm(1.0); });
        cuda::emulated::set_captured(nullptr, false);
        EXPECT_TRUE(contains(of_step, "cannot be captured in a CUDA graph")) << of_step;
        EXPECT_EQ(of_step, of_norm);
        EXPECT_TRUE(torch::equal(parameter, before));
        EXPECT_EQ(optimizer.step_count(parameter), has_stepped ? 1 : 0);
    }
}

// Torch may keep the whole card for tensors that are gone, and gives it back when it is asked.
TEST_F(OnCuda, MemoryThatTorchKeepsIsAskedFor) {
    for (int successes = 0; successes < 4; ++successes) {
        auto parameter = parameter_with_gradient();
        AdamW optimizer({parameter}, 1e-2);
        cuda::emulated::fail("cudaMalloc", cudaErrorMemoryAllocation, successes);
        optimizer.step();
        EXPECT_EQ(optimizer.step_count(parameter), 1);
        EXPECT_LT(parameter[3][6].item<float>(), 1.0F);
    }
}

// CUDA loads a kernel at its first use, for which there may be no memory either. Were a part of the step
// enqueued before, the second call would step it again.
TEST_F(OnCuda, StepWhoseKernelsFindNoMemoryIsTakenOnce) {
    const auto make = [] {
        auto small = torch::full({3, 5}, 2.0, torch::kFloat32).requires_grad_();  // another kernel's
        small.mutable_grad() = torch::full({3, 5}, 0.25, torch::kFloat32);
        return std::vector{parameter_with_gradient(), small};
    };
    const auto expected = make();
    AdamW reference(expected, 1e-2);
    reference.step();
    constexpr int kKernels = 3 + 2 * 2;  // of the whole step, and two for each parameter
    for (int successes = 0; successes < kKernels; ++successes) {
        const auto parameters = make();
        AdamW optimizer(parameters, 1e-2);
        cuda::emulated::unload_kernels();
        cuda::emulated::fail("cudaFuncGetAttributes", cudaErrorMemoryAllocation, successes);
        optimizer.step();
        for (std::size_t n = 0; n < 2; ++n) {
            EXPECT_EQ(optimizer.step_count(parameters[n]), 1);
            EXPECT_TRUE(torch::equal(parameters[n], expected[n])) << successes;
        }
    }
}

// What fails later may have been done in part.
TEST_F(OnCuda, LaunchThatFailsIsNotRepeated) {
    auto parameter = parameter_with_gradient();
    AdamW optimizer({parameter}, 1e-2);
    optimizer.step();
    const auto before = parameter.detach().clone();
    cuda::emulated::fail("cudaLaunchKernelExC", cudaErrorMemoryAllocation, 1);
    const auto message = message_of<cuda::CudaError>([&] { optimizer.step(); });
    EXPECT_TRUE(contains(message, "the launch of a step's kernel failed")) << message;
    EXPECT_TRUE(torch::equal(parameter, before));
    EXPECT_EQ(optimizer.step_count(parameter), 1);
}

// On another device than the CPU and CUDA nothing can be stepped.
TEST_F(OnCuda, OtherDevicesAreRefused) {
    const auto meta = torch::ones({4}, torch::device(torch::kMeta));
    EXPECT_THROW(AdamW({meta}, 1e-2), InvalidArgument);
}

}  // namespace flashoptim::libtorch
