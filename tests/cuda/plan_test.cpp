// StepPlan over the emulated runtime: what it asks of CUDA, and what it says where that refuses. If these fail, a program waits, copies
// or allocates where it was told that nothing would, or dies without a word when device memory ends.
#include "emulated_runtime.h"
#include "subject.h"

namespace flashoptim::cuda {

namespace {

/// Two tensors that are "in device memory": the emulated one is the host's.
TensorSet two_tensors() {
    return {rule_cases()[4],
            {"native", {Format::kNative, 24, true, 0, 0}, DType::kBFloat16},
            DType::kBFloat16,
            {{{9, 67}}, {{640}}}};
}

class CudaPlan : public ::testing::Test {
    void TearDown() override {
        emulated::set_device_count(1);
        emulated::set_captured(nullptr, false);
        EXPECT_EQ(emulated::allocated_bytes(0), 0U);
        EXPECT_EQ(emulated::allocated_bytes(1), 0U);
    }
};

}  // namespace

TEST_F(CudaPlan, StepWaitsForNothing) {
    auto set = two_tensors();
    StepPlan plan;
    for (int t = 1; t <= 5; ++t) {
        set.fill_gradients(t);
        const auto before = emulated::waits();
        plan.step(set.items(), {}, nullptr);
        EXPECT_EQ(emulated::waits(), before) << "step " << t;
    }
}

// A CUDA graph could not be made of a step otherwise.
TEST_F(CudaPlan, PreparedStepCanBeCaptured) {
    auto set = two_tensors();
    set.fill_gradients(1);
    StepPlan plan;
    plan.prepare(set.items(), nullptr);
    emulated::set_captured(nullptr, true);
    EXPECT_NO_THROW(plan.step(set.items(), {}, nullptr));
}

TEST_F(CudaPlan, UsesTheMemoryOfItsDeviceWhateverIsCurrent) {
    emulated::set_device_count(2);
    auto set = two_tensors();
    set.fill_gradients(1);
    {
        StepPlan plan(1);
        plan.step(set.items(), {}, nullptr);
        EXPECT_EQ(emulated::device_of(plan.bad_elements()), 1);
        EXPECT_EQ(emulated::allocated_bytes(0), 0U);
        int current = -1;
        EXPECT_EQ(cudaGetDevice(&current), cudaSuccess);
        EXPECT_EQ(current, 0);
    }
    EXPECT_EQ(emulated::allocated_bytes(1), 0U);
}

TEST_F(CudaPlan, WhatCudaRefusesIsNamed) {
    auto set = two_tensors();
    set.fill_gradients(1);
    const auto before = set.bytes();
    StepPlan plan;
    emulated::fail("cudaMalloc", cudaErrorMemoryAllocation, 2);
    expect_refused<Error>("cudaMalloc failed with cudaErrorMemoryAllocation (out of memory)",
                          [&] { plan.step(set.items(), {}, nullptr); });
    EXPECT_TRUE(before == set.bytes());
    plan.step(set.items(), {}, nullptr);  // once there is memory again
    EXPECT_FALSE(before == set.bytes());
    emulated::fail("cudaGetLastError", cudaErrorInvalidDeviceFunction);
    expect_refused<Error>("the launch of a step's scalars failed with cudaErrorInvalidDeviceFunction",
                          [&] { plan.step(set.items(), {}, nullptr); });
}

TEST_F(CudaPlan, ErrorPolicyIsCheckedAfterwards) {
    auto set = two_tensors();
    set.fill_gradients(2);  // with NaN in both
    const auto before = set.bytes();
    StepPlan plan;
    plan.step(set.items(), {NonFinite::kError, {}}, nullptr);
    expect_refused<NonFiniteError>("2 elements of the gradients", [&] { plan.check(nullptr); });
    EXPECT_TRUE(before == set.bytes());
    set.fill_gradients(1);
    plan.step(set.items(), {NonFinite::kError, {}}, nullptr);
    EXPECT_NO_THROW(plan.check(nullptr));
}

TEST_F(CudaPlan, BuffersThatAreMissingAreNamed) {
    auto set = two_tensors();
    set.items()[1].state.second = nullptr;
    StepPlan plan;
    expect_refused<InvalidArgument>("tensor 1: its second moments are null",
                                    [&] { plan.step(set.items(), {}, nullptr); });
}

}  // namespace flashoptim::cuda
