// The framework-free optimizers and StepPlan over the emulated runtime, with each allocation of the host and
// of the device failing. If these fail, a step that runs out of device memory leaves half of itself behind,
// or reads memory that was given back.
#include <functional>

#include "emulated_runtime.h"
#include "failing_allocations.h"
#include "optimizer_pair.h"

namespace flashoptim::cuda {

namespace {

class NoMemoryOnDevice : public ::testing::Test {
    void SetUp() override { emulated::set_memory_hooks({&allocation_may_succeed, &pause_failures}); }
    void TearDown() override {
        EXPECT_EQ(emulated::allocated_bytes(0), 0U);
        emulated::set_memory_hooks({});
    }
};

/// A pair in the middle of training, a tensor more than it has, and numbers on the device.
struct Trained {
    explicit Trained(const RuleCase& rule, NonFinite policy) : pair(rule, native(policy)) {
        pair.fill_gradients(1);
        pair.host().step();
        pair.device().step();
        more.fill([] { return 0.5F; });
        more_on_device.upload(more);
    }
    Pair pair;
    Tensor more{DType::kBFloat16, {33, 64}};
    DeviceTensor more_on_device{more};
    PairedNumber found_inf{0.0F};
};
using Action = std::function<void(Trained&, Optimizer&, bool is_device)>;

void sweep(const std::string& name, const RuleCase& rule, const Action& act,
           NonFinite policy = NonFinite::kSkipElement) {
    SCOPED_TRACE(name + " of " + rule.name);
    fail_each_allocation(
        [&] {
            emulated::unload_kernels();
            return std::make_unique<Trained>(rule, policy);
        },
        [&](std::unique_ptr<Trained>& t) { act(*t, t->pair.device(), true); },
        [&](std::unique_ptr<Trained>& t, const FailedAllocation& failure) {
            EXPECT_EQ(cudaGetLastError(), cudaSuccess);
            if (!failure.error) act(*t, t->pair.host(), false);
            t->pair.expect_same();
            if (failure.error) {
                act(*t, t->pair.device(), true);
                act(*t, t->pair.host(), false);
                t->pair.expect_same();
            }
            t->pair.fill_gradients(2);
            t->pair.host().step();
            t->pair.device().step();
            t->pair.expect_same();
        });
}

RuleCase sgd() { return rule_cases()[0]; }

}  // namespace

TEST_F(NoMemoryOnDevice, EveryFunctionOfAnOptimizer) {
    const std::vector<std::pair<std::string, Action>> actions = {
        {"step", [](Trained&, Optimizer& o, bool) { o.step(); }},
        {"step_parameter", [](Trained&, Optimizer& o, bool) { o.step_parameter(0); }},
        {"step that is counted on the device",
         [](Trained& t, Optimizer& o, bool is_device) {
             o.set_found_inf(is_device ? t.found_inf.on_device() : t.found_inf.here());
             o.step();
             o.set_found_inf(nullptr);
         }},
        {"add_parameter",
         [](Trained& t, Optimizer& o, bool is_device) {
             o.add_parameter(is_device ? t.more_on_device.view() : t.more.view(), "more");
         }},
        {"clip_grad_norm",
         [](Trained&, Optimizer& o, bool) {
             o.clip_grad_norm(0.5);
             o.step();
         }},
        {"grad_norm", [](Trained&, Optimizer& o, bool) { (void)o.grad_norm(); }},
        {"masters",
         [](Trained&, Optimizer& o, bool) {
             auto masters = o.master(1);
             for (auto& w : masters) w += 0x1p-10F;
             o.set_master(1, masters);
             o.refresh_masters(0);
         }},
        {"moments and state",
         [](Trained&, Optimizer& o, bool) {
             (void)o.moment(0, 0);
             (void)o.state(0);
             (void)o.stored_weight(0);
             (void)o.bad_elements(0);
         }},
    };
    for (const auto& [name, act] : actions) sweep(name, adamw(), act);
    sweep("momentum", sgd(), [](Trained&, Optimizer& o, bool) {
        auto h = o.hyperparameters();
        h.momentum = 0.9;
        o.set_hyperparameters(0, h);
    });
    sweep(
        "step under a policy", adamw(), [](Trained&, Optimizer& o, bool) { o.step(); }, NonFinite::kSkipStep);
}

// What the last step counted is asked for after a longer list could not be prepared.
TEST_F(NoMemoryOnDevice, CountsOfTheLastStepSurviveAListThatDoesNotFit) {
    struct Lists {
        Lists() {
            small.fill_gradients(1);
            plan.step(small.items(), {}, nullptr);
        }
        TensorSet small = two_tensors(), large = large_list();
        StepPlan plan;
        static TensorSet large_list() {
            auto set = two_tensors();
            for (int n = 0; n < 4; ++n)
                set.append({adamw(),
                            {"fp32", {Format::kFloat32, 32, true, 0, 0}, DType::kBFloat16},
                            DType::kBFloat16,
                            {{{5, 40}}, {{300, 70}}}});
            set.fill_gradients(1);
            return set;
        }
    };
    fail_each_allocation(
        [] { return std::make_unique<Lists>(); },
        [](std::unique_ptr<Lists>& lists) { lists->plan.prepare(lists->large.items(), nullptr); },
        [](std::unique_ptr<Lists>& lists, const FailedAllocation&) {
            std::vector<std::uint64_t> counts(lists->small.items().size(), 77);
            lists->plan.bad_elements(counts, nullptr);
            for (const auto count : counts) EXPECT_EQ(count, 0U);
            EXPECT_FALSE(lists->plan.was_skipped(nullptr));
            auto expected = Lists::large_list();
            ThreadPool pool(1);
            step(expected.items(), pool, Backend::kScalar);
            lists->plan.step(lists->large.items(), {}, nullptr);
            EXPECT_TRUE(expected.same_as(lists->large));
        });
}

}  // namespace flashoptim::cuda
