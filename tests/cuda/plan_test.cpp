// StepPlan over the emulated runtime: what it asks of CUDA, and what it says where that refuses. If these fail, a program waits, copies
// or allocates where it was told that nothing would, or dies without a word when device memory ends.
#include "emulated_runtime.h"
#include "subject.h"

namespace flashoptim::cuda {

namespace {

/// Two tensors that are "in device memory": the emulated one is the host's.
TensorSet two_tensors(const RuleCase& rule = rule_cases()[4]) {
    return {rule,
            {"native", {Format::kNative, 24, true, 0, 0}, DType::kBFloat16},
            DType::kBFloat16,
            {{{9, 67}}, {{640}}}};
}

class CudaPlan : public ::testing::Test {
    void TearDown() override {
        emulated::set_device_count(1);
        emulated::set_driver_version(CUDART_VERSION);
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

// If a list that was refused leaves a trace, the next step runs on the descriptors of the one before: it writes other tensors.
TEST_F(CudaPlan, AListThatIsRefusedLeavesNoTrace) {
    auto first = two_tensors(), second = two_tensors(), expected = two_tensors();
    for (auto* set : {&first, &second, &expected}) set->fill_gradients(1);
    StepPlan plan;
    plan.step(first.items(), {}, nullptr);
    const auto stepped_once = first.bytes();
    auto items = second.items();
    items[1].gradient = nullptr;
    expect_refused<InvalidArgument>("tensor 1: its weight or gradient is null",
                                    [&] { plan.step(items, {}, nullptr); });
    plan.step(std::span(second.items()).first(1), {}, nullptr);
    ThreadPool pool(1);
    step(std::span(expected.items()).first(1), pool, Backend::kScalar);
    EXPECT_TRUE(first.bytes() == stepped_once);
    EXPECT_TRUE(second.same_as(expected));
}

// A graph reads the list at every replay: if a later list were written over it, a replay would step with other gradients' addresses.
TEST_F(CudaPlan, WhatAGraphReadsIsLeftAsItIs) {
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
TEST_F(CudaPlan, OnlyWhatGraphsReadIsKept) {
    auto set = two_tensors(), other = two_tensors();
    set.fill_gradients(1);
    other.fill_gradients(1);
    StepPlan plan;
    plan.step(other.items(), {}, nullptr);
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
TEST_F(CudaPlan, ReleasesRightAfterACapture) {
    auto set = two_tensors(), other = two_tensors();
    set.fill_gradients(1);
    other.fill_gradients(1);
    StepPlan plan;
    plan.step(other.items(), {}, nullptr);
    const auto one_list = emulated::allocated_bytes(0);
    emulated::set_captured(nullptr, true);
    plan.step(set.items(), {}, nullptr);
    plan.release_captured();
    emulated::set_captured(nullptr, false);
    EXPECT_EQ(emulated::allocated_bytes(0), one_list);
    plan.step(set.items(), {}, nullptr);
    EXPECT_EQ(emulated::allocated_bytes(0), one_list);
    plan.step(other.items(), {}, nullptr);
    EXPECT_TRUE(set.same_as(other));
}

TEST_F(CudaPlan, NormCanBeCaptured) {
    auto set = two_tensors();
    set.fill_gradients(1);
    StepPlan plan;
    emulated::set_captured(nullptr, true);
    double norm = 0.0;
    EXPECT_NO_THROW(plan.grad_norm(set.items(), {}, &norm, 1.0, nullptr, nullptr));
    ThreadPool pool(1);
    EXPECT_EQ(norm, grad_norm(set.items(), pool));
}

// Two groups, each with a learning rate of its own, and a step count for each tensor: what torch's parameter groups are on a GPU.
TEST_F(CudaPlan, ValuesOfSingleItems) {
    for (const auto& rule : rule_cases()) {
        auto expected = two_tensors(rule), found = two_tensors(rule);
        std::int64_t steps[] = {0, 7};
        const double rates[] = {0.02, 0.3};
        float found_inf = 0.0F;
        std::uint64_t bad[] = {0, 0};
        const ItemValues values[] = {{&steps[0], &rates[0]}, {&steps[1], &rates[1], 7}};
        StepPlan plan;
        ThreadPool pool(1);
        for (int t = 1; t <= 4; ++t) {
            expected.fill_gradients(t);
            found.fill_gradients(t);
            for (std::size_t n = 0; n < 2; ++n) {
                auto& item = expected.items()[n];
                item.step = steps[n] + 1;
                item.has_momentum = t > 1;
                item.hyperparameters.learning_rate = rates[n];
                found.items()[n].step = 1;
                found.items()[n].has_momentum = false;
            }
            StepOptions options;
            options.device.items = values;
            options.device.bad_elements = bad;
            options.device.found_inf = &found_inf;
            found_inf = 1.0F;
            const auto before = found.bytes();
            plan.step(found.items(), options, nullptr);
            EXPECT_TRUE(before == found.bytes());
            EXPECT_EQ(steps[0], t - 1);
            found_inf = 0.0F;
            step(expected.items(), pool, Backend::kScalar);
            plan.step(found.items(), options, nullptr);
            ASSERT_TRUE(expected.same_as(found)) << rule.name << ", step " << t;
            EXPECT_EQ(steps[0], t);
            EXPECT_EQ(steps[1], 7 + t);
        }
        EXPECT_EQ(bad[0], 2U);  // one in the second step, one in the third
        EXPECT_EQ(bad[1], 2U);
    }
}

// A count that several items and the list share is advanced once; more groups than one launch takes get their own scalars all the
// same.
TEST_F(CudaPlan, SharedCountsAndManyGroups) {
    const auto make = [] {
        TensorSet all = two_tensors();
        while (all.items().size() < 100) all.append(two_tensors());
        all.fill_gradients(1);
        for (std::size_t n = 0; n < all.items().size(); ++n) {
            all.items()[n].hyperparameters.learning_rate = 0.01 * static_cast<double>(n + 1);
        }
        return all;
    };
    auto expected = make(), found = make();
    std::int64_t shared = 0, own = 0;
    std::vector<ItemValues> values(found.items().size());
    values[3].steps_done = values[70].steps_done = &own;
    values[5].steps_done = &shared;
    StepOptions options;
    options.device.steps_done = &shared;
    options.device.items = values;
    StepPlan plan;
    ThreadPool pool(1);
    step(expected.items(), pool, Backend::kScalar);
    plan.step(found.items(), options, nullptr);
    EXPECT_TRUE(expected.same_as(found));
    EXPECT_EQ(shared, 1);
    EXPECT_EQ(own, 1);
    values.pop_back();
    options.device.items = values;
    expect_refused<InvalidArgument>("give one for each tensor, or none",
                                    [&] { plan.step(found.items(), options, nullptr); });
}

TEST_F(CudaPlan, UsesTheMemoryOfItsDeviceWhateverIsCurrent) {
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

// A process for each device: were CUDA begun on device 0 by each of them, that would cost its memory some 500 MB a process.
TEST_F(CudaPlan, BeginsNothingOnOtherDevices) {
    emulated::set_device_count(2);
    auto set = two_tensors();
    set.fill_gradients(1);
    {
        const StepPlan unused(0);
        StepPlan plan(1);
        EXPECT_FALSE(emulated::is_in_use(1));
        plan.step(set.items(), {}, nullptr);
        std::uint64_t counts[2];
        plan.bad_elements(counts, nullptr);
        EXPECT_TRUE(emulated::is_in_use(1));
        EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
    }
    EXPECT_FALSE(emulated::is_in_use(0));
}

// cudaFree and its like spoil a capture that is under way, which may be somebody else's.
TEST_F(CudaPlan, IsGivenBackDuringACapture) {
    auto set = two_tensors();
    set.fill_gradients(1);
    auto plan = std::make_unique<StepPlan>();
    plan->step(set.items(), {}, nullptr);
    emulated::set_captured(nullptr, true);
    plan.reset();
    EXPECT_EQ(emulated::allocated_bytes(0), 0U);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(CudaPlan, SaysWhyADeviceCannotBeUsed) {
    const auto make = [] { const StepPlan plan; };
    emulated::set_driver_version(11080);
    expect_refused<Error>(
        "the driver is for CUDA 11.8 and this library was built with CUDA 13.0; update the driver", make);
    emulated::set_driver_version(0);
    expect_refused<Error>("CUDA device 0 does not exist: this process sees 0", make);
    emulated::set_driver_version(CUDART_VERSION);
    emulated::fail("cudaGetDeviceCount", cudaErrorInitializationError);
    expect_refused<Error>("if it was forked from one that had used CUDA, start processes with spawn", make);
    emulated::set_device_count(0);
    expect_refused<Error>("CUDA device 0 does not exist: this process sees 0", make);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(CudaPlan, ErrorsOfKernelsHaveTheirRemedies) {
    auto set = two_tensors();
    set.fill_gradients(1);
    StepPlan plan;
    for (const auto& [error, remedy] : {std::pair{cudaErrorIllegalAddress, "in memory of the device"},
                                        std::pair{cudaErrorNoKernelImageForDevice, "compute capability 8.0"},
                                        std::pair{cudaErrorUnsupportedPtxVersion, "update the driver"}}) {
        emulated::fail("cudaLaunchKernelExC", error);
        expect_refused<Error>(remedy, [&] { plan.step(set.items(), {}, nullptr); });
    }
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
    const char* const launches[] = {"the launch of a step's scalars", "the launch of a step's kernel"};
    for (int n = 0; n < 2; ++n) {
        emulated::fail("cudaLaunchKernelExC", cudaErrorInvalidDeviceFunction, n);
        expect_refused<Error>(std::string(launches[n]) + " failed with cudaErrorInvalidDeviceFunction",
                              [&] { plan.step(set.items(), {}, nullptr); });
    }
}

// An error that the application did not look at is its own: it must not be told of a step that runs, nor be taken away.
TEST_F(CudaPlan, ErrorsOfTheApplicationAreItsOwn) {
    auto set = two_tensors();
    set.fill_gradients(1);
    StepPlan plan;
    double norm = 0.0;
    EXPECT_EQ(cudaSetDevice(99), cudaErrorInvalidDevice);
    EXPECT_NO_THROW(plan.step(set.items(), {NonFinite::kSkipStep, {}}, nullptr));
    EXPECT_NO_THROW(plan.grad_norm(set.items(), {}, &norm, 1.0, nullptr, nullptr));
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
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

// What a step leaves to be asked for is of that step: a loop that takes a norm or counts before it asks must not be told otherwise.
TEST_F(CudaPlan, NormsAndCountsLeaveTheVerdictOnTheStep) {
    auto bad = two_tensors(), good = two_tensors(), longer = two_tensors();
    longer.append(two_tensors());
    bad.fill_gradients(2);  // with NaN in both
    good.fill_gradients(1);
    longer.fill_gradients(2);
    StepPlan plan;
    EXPECT_FALSE(plan.was_skipped(nullptr));
    double norm = 0.0;
    const auto measure = [&](TensorSet& set, std::uint64_t expected) {
        plan.grad_norm(set.items(), {}, &norm, 1.0, nullptr, nullptr);
        EXPECT_EQ(plan.count_bad_gradients(set.items(), {}, {}, nullptr), expected);
        EXPECT_NE(plan.bad_gradients(), plan.bad_elements());
    };
    std::uint64_t counts[2];
    plan.step(bad.items(), {NonFinite::kError, {}}, nullptr);
    measure(good, 0);
    measure(longer, 4);
    EXPECT_TRUE(plan.was_skipped(nullptr));
    expect_refused<NonFiniteError>("2 elements of the gradients", [&] { plan.check(nullptr); });
    plan.bad_elements(counts, nullptr);
    EXPECT_EQ(counts[0], 1U);

    plan.step(good.items(), {}, nullptr);
    measure(bad, 2);
    EXPECT_FALSE(plan.was_skipped(nullptr));
    plan.bad_elements(counts, nullptr);
    EXPECT_EQ(counts[0], 0U);
}

TEST_F(CudaPlan, BuffersThatAreMissingAreNamed) {
    auto set = two_tensors();
    set.items()[1].state.second = nullptr;
    StepPlan plan;
    expect_refused<InvalidArgument>("tensor 1: its second moments are null",
                                    [&] { plan.step(set.items(), {}, nullptr); });
}

}  // namespace flashoptim::cuda
