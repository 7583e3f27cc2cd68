// StepPlan over the emulated runtime: what it asks of CUDA, and what it says where that refuses. If
// these fail, a program waits, copies or allocates where it was told that nothing would, or dies without
// a word when device memory ends.
#include "emulated_runtime.h"
#include "subject.h"

namespace flashoptim::cuda {

namespace {

class CudaPlanOnEmulation : public ::testing::Test {
    void TearDown() override {
        emulated::set_device_count(1);
        emulated::set_driver_version(CUDART_VERSION);
        emulated::set_captured(nullptr, false);
        EXPECT_EQ(emulated::allocated_bytes(0), 0U);
        EXPECT_EQ(emulated::allocated_bytes(1), 0U);
    }
};

/// Two lists with the same tensors and gradients; the plan has stepped the other one.
struct TwoLists {
    TwoLists() {
        set.fill_gradients(1);
        other.fill_gradients(1);
        plan.step(other.items(), {}, nullptr);
    }
    TensorSet set = two_tensors(), other = two_tensors();
    StepPlan plan;
};

}  // namespace

TEST_F(CudaPlanOnEmulation, StepWaitsForNothing) {
    auto set = two_tensors();
    StepPlan plan;
    for (int t = 1; t <= 5; ++t) {
        set.fill_gradients(t);
        const auto before = emulated::waits();
        plan.step(set.items(), {}, nullptr);
        EXPECT_EQ(emulated::waits(), before) << "step " << t;
    }
}

// A graph reads the list at every replay: if a later list were written over it, a replay would step with
// other gradients' addresses.
TEST_F(CudaPlanOnEmulation, WhatAGraphReadsIsLeftAsItIs) {
    auto set = two_tensors(), other = two_tensors();
    set.fill_gradients(1);
    other.fill_gradients(1);
    StepPlan plan;
    emulated::set_captured(nullptr, true);
    EXPECT_NO_THROW(plan.step(set.items(), {}, nullptr));  // not prepared: uploaded beside the capture
    const auto* const counts = plan.bad_elements();
    emulated::set_captured(nullptr, false);

    const auto captured = emulated::allocated_bytes(0);
    plan.step(other.items(), {}, nullptr);
    EXPECT_GT(emulated::allocated_bytes(0), captured);
    EXPECT_NE(plan.bad_elements(), counts);

    const auto after = emulated::allocated_bytes(0);
    plan.step(set.items(), {}, nullptr);  // the list changes outside of a capture: nothing new
    EXPECT_EQ(emulated::allocated_bytes(0), after);
}

// Capturing again and again, with steps in between, must not take new memory each time that nobody reads.
TEST_F(CudaPlanOnEmulation, OnlyWhatGraphsReadIsKept) {
    TwoLists lists;
    auto& [set, other, plan] = lists;
    const auto one_list = emulated::allocated_bytes(0);
    std::size_t captured_once = 0;
    for (int n = 1; n <= 4; ++n) {
        emulated::set_captured(nullptr, true);
        plan.step(set.items(), {}, nullptr);
        emulated::set_captured(nullptr, false);
        plan.step(other.items(), {}, nullptr);
        const auto captured = emulated::allocated_bytes(0) - one_list;
        if (n == 1) captured_once = captured;
        EXPECT_EQ(captured, static_cast<std::size_t>(n) * captured_once) << "capture " << n;
    }
    plan.release_captured();
    EXPECT_EQ(emulated::allocated_bytes(0), one_list);
    plan.step(other.items(), {}, nullptr);
    for (int n = 0; n < 2; ++n) plan.step(set.items(), {}, nullptr);
    EXPECT_EQ(emulated::allocated_bytes(0), one_list);
    EXPECT_TRUE(set.same_as(other));  // each was stepped six times
}

// The list of the last capture stays the plan's own when graphs are gone, the one from before it does not.
TEST_F(CudaPlanOnEmulation, ReleasesRightAfterACapture) {
    TwoLists lists;
    auto& [set, other, plan] = lists;
    const auto one_list = emulated::allocated_bytes(0);
    emulated::set_captured(nullptr, true);
    plan.step(set.items(), {}, nullptr);
    const auto both_lists = emulated::allocated_bytes(0);
    plan.release_captured();
    emulated::set_captured(nullptr, false);
    const auto left = emulated::allocated_bytes(0);
    EXPECT_GT(left, both_lists - one_list);
    EXPECT_LT(left, both_lists);
    plan.step(set.items(), {}, nullptr);
    EXPECT_EQ(emulated::allocated_bytes(0), left);
    plan.step(other.items(), {}, nullptr);
    EXPECT_TRUE(set.same_as(other));
}

TEST_F(CudaPlanOnEmulation, NormCanBeCaptured) {
    auto set = two_tensors();
    set.fill_gradients(1);
    StepPlan plan;
    emulated::set_captured(nullptr, true);
    double norm = 0.0;
    EXPECT_NO_THROW(plan.grad_norm(set.items(), {}, &norm, 1.0, nullptr, nullptr));
    ThreadPool pool(1);
    EXPECT_EQ(norm, grad_norm(set.items(), pool));
    const auto with_norm = emulated::allocated_bytes(0);
    plan.count_bad_gradients(set.items(), {}, nullptr);
    plan.step(set.items(), {}, nullptr);
    EXPECT_EQ(emulated::allocated_bytes(0), with_norm);  // of the same list
}

TEST_F(CudaPlanOnEmulation, UsesTheMemoryOfItsDeviceWhateverIsCurrent) {
    emulated::set_device_count(2);
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
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

// A process for each device makes its own current first: were CUDA begun on device 0 by each of them, that
// would cost its memory some 500 MB a process.
TEST_F(CudaPlanOnEmulation, BeginsNothingOnOtherDevices) {
    emulated::set_device_count(2);
    EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
    auto set = two_tensors();
    set.fill_gradients(1);
    {
        const StepPlan unused(0);
        StepPlan plan(1);
        plan.step(set.items(), {}, nullptr);
        std::uint64_t counts[2];
        plan.bad_elements(counts, nullptr);
    }
    EXPECT_FALSE(emulated::is_in_use(0));
}

// cudaFree and its like spoil a capture that is under way, which may be somebody else's.
TEST_F(CudaPlanOnEmulation, IsGivenBackDuringACapture) {
    auto set = two_tensors();
    set.fill_gradients(1);
    auto plan = std::make_unique<StepPlan>();
    plan->step(set.items(), {}, nullptr);
    emulated::set_captured(nullptr, true);
    plan.reset();
    EXPECT_EQ(emulated::allocated_bytes(0), 0U);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(CudaPlanOnEmulation, SaysWhyADeviceCannotBeUsed) {
    const auto make = [] { const StepPlan plan; };
    emulated::set_driver_version(11080);
    expect_refused<CudaError>(
        "the driver is for CUDA 11.8 and this library was built with CUDA 13.0; update the driver", make);
    emulated::set_driver_version(0);
    expect_refused<CudaError>("CUDA device 0 does not exist: this process sees 0", make);
    emulated::set_driver_version(CUDART_VERSION);
    emulated::fail("cudaGetDeviceCount", cudaErrorInitializationError);
    expect_refused<CudaError>("if it was forked from one that had used CUDA, start processes with spawn",
                              make);
    emulated::set_device_count(0);
    expect_refused<CudaError>("CUDA device 0 does not exist: this process sees 0", make);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(CudaPlanOnEmulation, ErrorsOfKernelsHaveTheirRemedies) {
    auto set = two_tensors();
    set.fill_gradients(1);
    StepPlan plan;
    for (const auto& [error, remedy] : {std::pair{cudaErrorIllegalAddress, "in memory of the device"},
                                        std::pair{cudaErrorNoKernelImageForDevice, "compute capability 8.0"},
                                        std::pair{cudaErrorUnsupportedPtxVersion, "update the driver"}}) {
        emulated::fail("cudaLaunchKernelExC", error);
        expect_refused<CudaError>(remedy, [&] { plan.step(set.items(), {}, nullptr); });
    }
}

TEST_F(CudaPlanOnEmulation, WhatCudaRefusesIsNamed) {
    auto set = two_tensors();
    set.fill_gradients(1);
    const auto before = set.bytes();
    StepPlan plan;
    emulated::fail("cudaMalloc", cudaErrorMemoryAllocation, 2);
    expect_refused<CudaError>("cudaMalloc failed with cudaErrorMemoryAllocation (out of memory)",
                              [&] { plan.step(set.items(), {}, nullptr); });
    EXPECT_TRUE(before == set.bytes());
    plan.step(set.items(), {}, nullptr);  // once there is memory again
    EXPECT_FALSE(before == set.bytes());
    const char* const launches[] = {"the launch of a step's scalars", "the launch of a step's kernel"};
    for (int n = 0; n < 2; ++n) {
        emulated::fail("cudaLaunchKernelExC", cudaErrorInvalidDeviceFunction, n);
        expect_refused<CudaError>(std::string(launches[n]) + " failed with cudaErrorInvalidDeviceFunction",
                                  [&] { plan.step(set.items(), {}, nullptr); });
    }
}

namespace {

/// Tensors of two kinds of storage.
TensorSet two_kinds(std::size_t rule = 4) {
    auto set = two_tensors(rule_cases()[rule]);
    set.append({rule_cases()[rule],
                {"fp32", {Format::kFloat32, 32, true, 0, 0}, DType::kBFloat16},
                DType::kBFloat16,
                {{{5, 40}}}});
    set.fill_gradients(1);
    return set;
}
/// Those of the whole step, and a step's and a count's of each kind of storage.
constexpr int kKernelsOfTwoKinds = 3 + 2 * 2;
const char* const kLoad = "cudaFuncGetAttributes";

}  // namespace

// Where the memory ends at the load of a kernel, whoever makes room and calls again would step
// twice what was enqueued before.
TEST_F(CudaPlanOnEmulation, StepWhoseKernelsCannotBeLoadedChangesNothing) {
    for (int successes = 0; successes < kKernelsOfTwoKinds; ++successes) {
        auto expected = two_kinds(), set = two_kinds();
        std::int64_t steps_done = 0;
        StepOptions options{NonFinite::kSkipStep, {}};
        options.device.steps_done = &steps_done;
        for (auto& item : set.items()) item.step = 1;
        const auto before = set.bytes();
        StepPlan plan;
        emulated::unload_kernels();
        emulated::fail(kLoad, cudaErrorMemoryAllocation, successes);
        expect_refused<CudaError>(
            "the load of a step's kernels failed with cudaErrorMemoryAllocation (out of memory)",
            [&] { plan.step(set.items(), options, nullptr); });
        EXPECT_TRUE(before == set.bytes()) << successes;
        EXPECT_EQ(steps_done, 0);
        EXPECT_EQ(cudaGetLastError(), cudaSuccess);
        plan.step(set.items(), options, nullptr);  // once there is memory again
        ThreadPool pool(1);
        step(expected.items(), pool, Backend::kScalar);
        EXPECT_TRUE(expected.same_as(set)) << successes;
        EXPECT_EQ(steps_done, 1);
    }
}

TEST_F(CudaPlanOnEmulation, KernelsAreLoadedOnceAndBeforeTheFirstLaunch) {
    auto set = two_kinds(), other = two_kinds(5);
    std::int64_t steps_done = 0;
    double norm = 0.0;
    StepOptions options{NonFinite::kSkipStep, {}};
    options.device.steps_done = &steps_done;
    StepPlan plan;
    emulated::unload_kernels();
    plan.prepare(set.items(), nullptr);
    emulated::fail(kLoad, cudaErrorMemoryAllocation);
    for (int n = 0; n < 2; ++n) EXPECT_NO_THROW(plan.step(set.items(), options, nullptr));
    EXPECT_NO_THROW(plan.grad_norm(set.items(), {}, &norm, 1.0, nullptr, nullptr));
    EXPECT_NO_THROW(plan.count_bad_gradients(set.items(), {}, nullptr));
    expect_refused<CudaError>("the load of a step's kernels",  // another rule's
                              [&] { plan.step(other.items(), options, nullptr); });
    EXPECT_NO_THROW(plan.step(other.items(), options, nullptr));
    EXPECT_NO_THROW(plan.step(set.items(), options, nullptr));
}

TEST_F(CudaPlanOnEmulation, KernelsAreLoadedBesideACapture) {
    auto expected = two_kinds(), set = two_kinds();
    StepPlan plan;
    emulated::unload_kernels();
    emulated::set_captured(nullptr, true);
    EXPECT_NO_THROW(plan.step(set.items(), {}, nullptr));
    ThreadPool pool(1);
    step(expected.items(), pool, Backend::kScalar);
    EXPECT_TRUE(expected.same_as(set));
}

// An error that the application did not look at is its own: it must not be told of a step
// that runs, nor be taken away.
TEST_F(CudaPlanOnEmulation, ErrorsOfTheApplicationAreItsOwn) {
    auto set = two_tensors();
    set.fill_gradients(1);
    StepPlan plan;
    double norm = 0.0;
    EXPECT_EQ(cudaSetDevice(99), cudaErrorInvalidDevice);
    EXPECT_NO_THROW(plan.step(set.items(), {NonFinite::kSkipStep, {}}, nullptr));
    EXPECT_NO_THROW(plan.grad_norm(set.items(), {}, &norm, 1.0, nullptr, nullptr));
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
}

}  // namespace flashoptim::cuda
