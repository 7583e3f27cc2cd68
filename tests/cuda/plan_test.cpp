// StepPlan over lists that change, values in device memory, policies and counts. If these fail, a
// training loop that steps a list of its own on a GPU steps other tensors than it said, or is told
// otherwise than what happened.
#include "subject.h"

namespace flashoptim::cuda {

namespace {

/// Values in device memory.
template <class T>
class DeviceValue {
public:
    explicit DeviceValue(const std::vector<T>& values) : size_(values.size()), copy_(size_ * sizeof(T)) {
        set(values);
    }
    void set(const std::vector<T>& values) { copy_.upload(values.data()); }
    [[nodiscard]] std::vector<T> get() const {
        std::vector<T> values(size_);
        copy_.download(values.data());
        return values;
    }
    [[nodiscard]] T* at(std::size_t place = 0) const { return copy_.as<T>() + place; }

private:
    std::size_t size_;
    DeviceCopy copy_;
};

/// A set with gradients, beside its copy on the device.
struct SetOnDevice {
    TensorSet host;
    DeviceSet device;

    SetOnDevice(TensorSet set, std::int64_t t) : host(std::move(set)), device(filled(host, t)) {}
    static TensorSet& filled(TensorSet& set, std::int64_t t) {
        set.fill_gradients(t);
        return set;
    }
    [[nodiscard]] std::span<const StepItem> items() const { return device.items; }
    [[nodiscard]] TensorSet& downloaded() {
        device.download();
        return host;
    }
};

class CudaPlan : public OnDevice {};

}  // namespace

// If a list that was refused leaves a trace, the next step runs on the descriptors of the one
// before: it writes other tensors.
TEST_F(CudaPlan, AListThatIsRefusedLeavesNoTrace) {
    SetOnDevice first(two_tensors(), 1), second(two_tensors(), 1);
    auto expected = two_tensors();
    expected.fill_gradients(1);
    StepPlan plan;
    plan.step(first.items(), {}, nullptr);
    const auto stepped_once = first.downloaded().bytes();
    auto items = second.device.items;
    items[1].gradient = nullptr;
    expect_refused<InvalidArgument>("tensor 1: its weight or gradient is null",
                                    [&] { plan.step(items, {}, nullptr); });
    plan.step(second.items().first(1), {}, nullptr);
    ThreadPool pool(1);
    step(std::span(expected.items()).first(1), pool, Backend::kScalar);
    EXPECT_TRUE(first.downloaded().bytes() == stepped_once);
    EXPECT_TRUE(second.downloaded().same_as(expected));
}

// Two groups, each with a learning rate of its own, and a step count for each tensor: what torch's
// parameter groups are on a GPU.
TEST_F(CudaPlan, ValuesOfSingleItems) {
    for (const auto& rule : rule_cases()) {
        auto expected = two_tensors(rule), found = two_tensors(rule);
        const double rates[] = {0.02, 0.3};
        const DeviceValue<std::int64_t> steps({0, 7});
        const DeviceValue<double> device_rates({rates[0], rates[1]});
        DeviceValue<float> found_inf({0.0F});
        const DeviceValue<std::uint64_t> bad({0, 0});
        const ItemValues values[] = {{steps.at(0), device_rates.at(0)}, {steps.at(1), device_rates.at(1), 7}};
        StepPlan plan;
        ThreadPool pool(1);
        DeviceSet on(found);
        for (int t = 1; t <= 4; ++t) {
            const auto before_steps = steps.get();
            expected.fill_gradients(t);
            found.fill_gradients(t);
            on.upload();
            for (std::size_t n = 0; n < 2; ++n) {
                auto& item = expected.items()[n];
                item.step = before_steps[n] + 1;
                item.has_momentum = t > 1;
                item.hyperparameters.learning_rate = rates[n];
                on.items[n].step = 1;
                on.items[n].has_momentum = false;
            }
            StepOptions options;
            options.device.items = values;
            options.device.bad_elements = bad.at();
            options.device.found_inf = found_inf.at();
            found_inf.set({1.0F});
            const auto before = found.bytes();
            plan.step(on.items, options, nullptr);
            on.download();
            EXPECT_TRUE(before == found.bytes());
            EXPECT_EQ(steps.get(), before_steps);
            found_inf.set({0.0F});
            step(expected.items(), pool, Backend::kScalar);
            plan.step(on.items, options, nullptr);
            on.download();
            ASSERT_TRUE(expected.same_as(found)) << rule.name << ", step " << t;
            EXPECT_EQ(steps.get(), (std::vector<std::int64_t>{t, 7 + t}));
        }
        EXPECT_EQ(bad.get(), (std::vector<std::uint64_t>{2, 2}));  // one in the second step, one in the third
    }
}

// A count that several items and the list share is advanced once; more groups than one launch takes get
// their own scalars all the same.
TEST_F(CudaPlan, SharedCountsAndManyGroups) {
    const auto make = [] {
        TensorSet all = two_tensors();
        while (all.items().size() < 100) all.append(two_tensors());
        for (std::size_t n = 0; n < all.items().size(); ++n) {
            all.items()[n].hyperparameters.learning_rate = 0.01 * static_cast<double>(n + 1);
        }
        return all;
    };
    auto expected = make();
    expected.fill_gradients(1);
    SetOnDevice found(make(), 1);
    const DeviceValue<std::int64_t> shared({0}), own({0});
    std::vector<ItemValues> values(found.items().size());
    values[3].steps_done = values[70].steps_done = own.at();
    values[5].steps_done = shared.at();
    StepOptions options;
    options.device.steps_done = shared.at();
    options.device.items = values;
    StepPlan plan;
    ThreadPool pool(1);
    step(expected.items(), pool, Backend::kScalar);
    plan.step(found.items(), options, nullptr);
    EXPECT_TRUE(expected.same_as(found.downloaded()));
    EXPECT_EQ(shared.get()[0], 1);
    EXPECT_EQ(own.get()[0], 1);
    values.pop_back();
    options.device.items = values;
    expect_refused<InvalidArgument>("give one for each tensor, or none",
                                    [&] { plan.step(found.items(), options, nullptr); });
}

TEST_F(CudaPlan, ErrorPolicyIsCheckedAfterwards) {
    SetOnDevice bad(two_tensors(), 2), good(two_tensors(), 1);  // with NaN in both tensors, and with none
    const auto before = bad.host.bytes();
    StepPlan plan;
    plan.step(bad.items(), {NonFinite::kError, {}}, nullptr);
    expect_refused<NonFiniteError>("2 elements of the gradients", [&] { plan.check(nullptr); });
    EXPECT_TRUE(before == bad.downloaded().bytes());
    plan.step(good.items(), {NonFinite::kError, {}}, nullptr);
    EXPECT_NO_THROW(plan.check(nullptr));
}

// What a step leaves to be asked for is of that step: a loop that takes a norm or counts before it asks
// must not be told otherwise.
TEST_F(CudaPlan, NormsAndCountsLeaveTheVerdictOnTheStep) {
    auto four = two_tensors();
    four.append(two_tensors());
    SetOnDevice bad(two_tensors(), 2), good(two_tensors(), 1), longer(std::move(four), 2);
    const DeviceValue<double> norm({0.0});
    StepPlan plan;
    EXPECT_FALSE(plan.was_skipped(nullptr));
    const auto measure = [&](const SetOnDevice& set, std::uint64_t expected) {
        plan.grad_norm(set.items(), {}, norm.at(), 1.0, nullptr, nullptr);
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
    SetOnDevice set(two_tensors(), 1);
    set.device.items[1].state.at(codes_place(1)) = nullptr;
    StepPlan plan;
    expect_refused<InvalidArgument>("tensor 1: its exp_avg_sq is null",
                                    [&] { plan.step(set.items(), {}, nullptr); });
}

}  // namespace flashoptim::cuda
