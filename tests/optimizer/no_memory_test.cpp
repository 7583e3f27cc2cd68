// Every public function of the core with each of its allocations failing. If these fail, a call that
// runs out of memory leaves an optimizer that steps wrongly or crashes, and a program that catches
// the error trains on with it.
#include <functional>

#include "../support/step_cases.h"
#include "failing_allocations.h"
#include "flashoptim/quantize.h"

namespace flashoptim {

namespace {

/// Everything that can be asked of an optimizer.
struct Snapshot {
    explicit Snapshot(Optimizer& optimizer) : bytes(bytes_of(optimizer)) {
        for (std::size_t group = 0; group < optimizer.group_count(); ++group) {
            groups.push_back(optimizer.hyperparameters(group));
        }
        for (std::size_t id = 0; id < optimizer.parameter_count(); ++id) {
            texts.push_back(optimizer.name(id) + "/" + std::to_string(optimizer.group_of(id)));
            plans.push_back(optimizer.storage(id));
            layouts.push_back(optimizer.layout(id));
            counts.push_back(optimizer.step_count(id));
            counts.push_back(optimizer.has_momentum(id) ? 1 : 0);
            counts.push_back(static_cast<std::int64_t>(optimizer.bad_elements(id)));
            for (const auto& tensor : optimizer.state(id)) texts.push_back(tensor.name);
        }
        const auto report = optimizer.memory_report();
        counts.insert(counts.end(), {report.parameters, static_cast<std::int64_t>(report.total()),
                                     static_cast<std::int64_t>(report.gradients)});
    }
    bool operator==(const Snapshot&) const = default;

    std::vector<std::byte> bytes;
    std::vector<Hyperparameters> groups;
    std::vector<std::string> texts;
    std::vector<StoragePlan> plans;
    std::vector<Layout> layouts;
    std::vector<std::int64_t> counts;
};

/// An optimizer in the middle of training: two groups, small and large tensors, one
/// gradient in another memory order.
class Trained {
public:
    Trained(Rule rule, const Hyperparameters& h, NonFinite policy) : optimizer_(rule, h, options_of(policy)) {
        auto other = h;
        other.learning_rate *= 2.0;
        optimizer_.add_group(other);
        Noise noise(3);
        for (const auto& shape : {std::vector<std::int64_t>{12, 40}, {7}, {260, 256}, {16, 32}}) {
            weights_.emplace_back(DType::kBFloat16, shape).fill([&] { return noise.even(); });
            const auto id = optimizer_.add_parameter(weights_.back().view(), {}, weights_.size() % 2);
            const bool in_order = id != 0;
            const auto strides = in_order ? std::vector<std::int64_t>{} : std::vector<std::int64_t>{1, 12};
            gradients_.emplace_back(DType::kBFloat16, shape, strides).fill([&] { return noise.even(); });
            optimizer_.set_gradient(id, gradients_.back().view());
        }
        spare_.fill([&] { return noise.even(); });
        optimizer_.step();
    }

    Optimizer& optimizer() { return optimizer_; }
    Tensor& weight(std::size_t id) { return weights_[id]; }
    Tensor& gradient(std::size_t id) { return gradients_[id]; }
    Tensor& spare() { return spare_; }
    /// Never stepped; its buffers are pages of their own.
    static Tensor& spare_large() {
        static Tensor large(DType::kBFloat16, {2048, 1040});
        return large;
    }
    float& number() { return number_; }
    Snapshot snapshot() { return Snapshot(optimizer_); }

private:
    static OptimizerOptions options_of(NonFinite policy) {
        OptimizerOptions options;
        options.storage.min_quantized_numel = 100;
        options.nonfinite = policy;
        options.threads = 3;
        return options;
    }

    std::vector<Tensor> weights_, gradients_;
    Tensor spare_{DType::kFloat16, {9, 33}};
    float number_ = 0.0F;
    Optimizer optimizer_;
};

using Action = std::function<void(Trained&)>;

/// Each allocation of the action fails; whatever happens, the optimizer is as one that was never disturbed.
void sweep(const std::string& name, const RuleCase& rule, const Action& action,
           NonFinite policy = NonFinite::kSkipElement) {
    SCOPED_TRACE(name + " of " + rule.name);
    const auto make = [&] { return std::make_unique<Trained>(rule.rule, rule.hyperparameters, policy); };
    const auto act = [&](std::unique_ptr<Trained>& trained) { action(*trained); };
    fail_each_allocation(make, act,
                         [&](std::unique_ptr<Trained>& disturbed, const FailedAllocation& failure) {
                             const auto twin = make();
                             const auto expect_same = [&](const char* when) {
                                 EXPECT_TRUE(disturbed->snapshot() == twin->snapshot()) << when;
                             };
                             if (!failure.error) action(*twin);
                             expect_same("after the failure");
                             disturbed->optimizer().step_parameter(0);
                             twin->optimizer().step_parameter(0);
                             expect_same("after a step");
                             if (failure.error) {
                                 action(*disturbed);
                                 action(*twin);
                                 expect_same("after another attempt");
                             }
                             EXPECT_EQ(disturbed->optimizer().grad_norm(), twin->optimizer().grad_norm());
                             disturbed->optimizer().step_parameter(2);
                             twin->optimizer().step_parameter(2);
                             expect_same("after a step behind it");
                         });
}

struct NamedAction {
    const char* name;
    Action act;
};

RuleCase sgd_without_momentum() { return rule_cases()[0]; }
RuleCase sgd_with_momentum() { return rule_cases()[1]; }
RuleCase adamw() { return rule_cases()[4]; }

void change_momentum(Trained& t) {
    auto h = t.optimizer().hyperparameters(1);
    h.momentum = h.momentum == 0.0 ? 0.9 : 0.0;
    h.dampening = 0.0;
    t.optimizer().set_hyperparameters(1, h);
}

}  // namespace

TEST(NoMemory, EveryFunctionThatChangesAnOptimizer) {
    for (const auto& rule : {sgd_without_momentum(), adamw()}) {
        for (const auto& [name, act] : std::vector<NamedAction>{
                 {"add_group", [](auto& t) { t.optimizer().add_group(t.optimizer().hyperparameters()); }},
                 {"set_learning_rate", [](auto& t) { t.optimizer().set_learning_rate(0.125); }},
                 {"set_learning_rate of a group", [](auto& t) { t.optimizer().set_learning_rate(1, 0.125); }},
                 {"add_parameter", [](auto& t) { t.optimizer().add_parameter(t.spare().view(), "spare"); }},
                 {"add_parameter, a shard",
                  [](auto& t) {
                      t.optimizer().add_parameter(t.spare().view(), std::string(100, 'n'), 0,
                                                  Shard{{18, 33}, {}, {9, 0}});
                  }},
                 {"add_parameter, many",
                  [](auto& t) {
                      const auto view = t.spare().view();  // rows of its own
                      auto row = view;
                      row.shape = {33};
                      row.strides = {1};
                      row.data =
                          static_cast<std::byte*>(view.data) + 66 * (t.optimizer().parameter_count() - 4);
                      t.optimizer().add_parameter(row);
                  }},
             }) {
            sweep(name, rule, act);
        }
    }
}

TEST(NoMemory, AParameterWhosePagesAreItsOwn) {
    sweep("add_parameter", adamw(),
          [](Trained& t) { t.optimizer().add_parameter(Trained::spare_large().view(), {}, 1); });
}

TEST(NoMemory, GradientsAndTheirNumbers) {
    for (const auto& [name, act] : std::vector<NamedAction>{
             {"set_gradient in order", [](auto& t) { t.optimizer().set_gradient(2, t.gradient(2).view()); }},
             {"set_gradient in another order",
              [](auto& t) {
                  auto view = t.gradient(3).view();
                  view.strides = {1, 16};
                  t.optimizer().set_gradient(3, view);
              }},
             {"set_gradient, another dtype",
              [](auto& t) {
                  auto view = Trained::spare_large().view();
                  view.dtype = DType::kFloat32;
                  view.shape = {12, 40};
                  view.strides = {1, 12};
                  t.optimizer().set_gradient(0, view);
              }},
             {"clear_gradient", [](auto& t) { t.optimizer().clear_gradient(3); }},
             {"set_gradient_factor", [](auto& t) { t.optimizer().set_gradient_factor(0.5); }},
             {"set_grad_scale",
              [](auto& t) {
                  t.number() = 2.0F;
                  t.optimizer().set_grad_scale(&t.number());
              }},
             {"set_found_inf", [](auto& t) { t.optimizer().set_found_inf(&t.number()); }},
             {"grad_norm", [](auto& t) { (void)t.optimizer().grad_norm(); }},
             {"clip_grad_norm and step",
              [](auto& t) {
                  t.optimizer().clip_grad_norm(0.25);
                  t.optimizer().step();
              }},
         }) {
        sweep(name, adamw(), act);
    }
}

TEST(NoMemory, Hyperparameters) {
    sweep("momentum is switched on", sgd_without_momentum(), change_momentum);
    sweep("momentum is switched off", sgd_with_momentum(), change_momentum);
    sweep("other decay", adamw(), [](Trained& t) {
        auto h = t.optimizer().hyperparameters();
        h.weight_decay = 0.5;
        t.optimizer().set_hyperparameters(0, h);
    });
}

TEST(NoMemory, Steps) {
    for (const auto& rule : {sgd_with_momentum(), adamw()}) {
        sweep("step", rule, [](auto& t) { t.optimizer().step(); });
        sweep("step_parameter", rule, [](auto& t) { t.optimizer().step_parameter(1); });
        const auto with_bad = [](Trained& t) {
            t.gradient(1).set(2, NAN);
            try {
                t.optimizer().step();
            } catch (const NonFiniteError&) {
                t.number() = 0.0F;
            }
            t.gradient(1).set(2, 1.0F);
        };
        sweep("step with a bad gradient", rule, with_bad);
        sweep("step with a bad gradient, skipped", rule, with_bad, NonFinite::kSkipStep);
        sweep("step with a bad gradient, refused", rule, with_bad, NonFinite::kError);
    }
}

TEST(NoMemory, WhatIsGivenOutAndTakenIn) {
    for (const auto& [name, act] : std::vector<NamedAction>{
             {"master", [](auto& t) { (void)t.optimizer().master(0); }},
             {"set_master",
              [](auto& t) {
                  const std::vector<float> values(7, 0.125F);
                  t.optimizer().set_master(1, values);
              }},
             {"refresh_masters", [](auto& t) { t.optimizer().refresh_masters(); }},
             {"moments",
              [](auto& t) {
                  (void)t.optimizer().moment(2, 0);
                  (void)t.optimizer().moment(2, 1);
              }},
             {"state", [](auto& t) { (void)t.optimizer().state(2); }},
             {"stored_weight", [](auto& t) { (void)t.optimizer().stored_weight(2); }},
             {"set_stored",
              [](auto& t) {
                  const std::vector<std::byte> bytes(12 * 40, std::byte{3});
                  t.optimizer().set_stored(0, "error_bits", bytes);
              }},
             {"set_step_count", [](auto& t) { t.optimizer().set_step_count(0, 77); }},
             {"set_has_momentum", [](auto& t) { t.optimizer().set_has_momentum(0, false); }},
             {"queries",
              [](auto& t) {
                  const auto& o = t.optimizer();
                  (void)o.rule(), (void)o.options(), (void)o.name(0), (void)o.weight(0), (void)o.storage(0);
                  (void)o.layout(0), (void)o.step_count(0), (void)o.bad_elements(0), (void)o.memory_report();
              }},
         }) {
        sweep(name, adamw(), act);
    }
}

// The message of an error needs memory, too.
TEST(NoMemory, CallsThatAreRefused) {
    const auto refused = [](const Action& act) {
        return [act](Trained& t) {
            try {
                act(t);
                ADD_FAILURE() << "not refused";
            } catch (const InvalidArgument&) {
                t.number() = 0.0F;
            }
        };
    };
    for (const auto& [name, act] : std::vector<NamedAction>{
             {"an overlap", [](auto& t) { t.optimizer().add_parameter(t.weight(0).view()); }},
             {"no such group", [](auto& t) { t.optimizer().add_parameter(t.spare().view(), "w", 9); }},
             {"no such parameter", [](auto& t) { t.optimizer().step_parameter(9); }},
             {"another shape", [](auto& t) { t.optimizer().set_gradient(0, t.gradient(1).view()); }},
             {"a bad rate", [](auto& t) { t.optimizer().set_learning_rate(-1.0); }},
             {"a bad group", [](auto& t) { t.optimizer().add_group({.learning_rate = NAN}); }},
             {"other bytes", [](auto& t) { t.optimizer().set_stored(0, "exp_avg", {}); }},
             {"a bad norm", [](auto& t) { t.optimizer().clip_grad_norm(NAN); }},
             {"a bad count", [](auto& t) { t.optimizer().set_step_count(0, -1); }},
         }) {
        sweep(name, adamw(), refused(act));
    }
}

TEST(NoMemory, FunctionsWithoutAnOptimizer) {
    Tensor weight(DType::kBFloat16, {64, 96}), gradient(DType::kBFloat16, {64, 96});
    gradient.fill([] { return 0.5F; });
    const auto layout = layout_of(weight.view());
    const auto plan =
        plan_storage(Rule::kLion, {}, {Format::kNative, 24, true, 0, 0}, DType::kBFloat16, layout);
    const std::vector<float> values(static_cast<std::size_t>(layout.numel), 0.75F);
    std::vector<std::byte> codes(plan.codes(0).bytes()), correction(plan.correction().bytes());
    std::vector<std::uint16_t> scales(static_cast<std::size_t>(plan.scales(0).count));
    std::vector<float> decoded(values.size());
    StepItem item;
    item.layout = &layout;
    item.plan = plan;
    item.weight = weight.view().data;
    item.state = {correction.data(), codes.data(), scales.data(), nullptr, nullptr};
    item.gradient = gradient.view().data;
    item.gradient_dtype = DType::kBFloat16;
    item.rule = Rule::kLion;
    const auto everything = [&] {
        (void)row_major_strides({3, 4});
        (void)layout_of(weight.view(), Shard{{128, 96}, {}, {64, 0}}, "part");
        (void)available_backends();
        check_hyperparameters(Rule::kAdam, {});
        quantize_moment(MomentKind::kSigned, plan.moments, layout, values, codes, scales);
        dequantize_moment(MomentKind::kSigned, plan.moments, layout, codes, scales, decoded);
        check_moment(MomentKind::kSigned, plan, layout, codes, scales, "m");
        split_weights(plan, values, weight.view().data, correction.data());
        correct_weights(plan, values, weight.view().data, correction.data());
        join_weights(plan, weight.view().data, correction.data(), decoded);
        copy_in_order(gradient.view(), {1, 64}, weight.view().data);
        split_weights(plan, values, weight.view().data, correction.data());
        ThreadPool pool(2), other(3), any;
        pool = std::move(other);
        (void)grad_norm({&item, 1}, pool);
        (void)count_bad_gradients({&item, 1}, pool);
        EXPECT_EQ(step({&item, 1}, pool), 0U);
    };
    const auto expected = [&] {
        everything();
        auto bytes = weight.bytes();
        bytes.insert(bytes.end(), codes.begin(), codes.end());
        return bytes;
    };
    const auto right = expected();
    const auto failed =
        fail_each_allocation([] { return 0; }, [&](int) { everything(); },
                             [&](int, const FailedAllocation&) { EXPECT_TRUE(expected() == right); });
    EXPECT_GT(failed, 20);
}

TEST(NoMemory, Construction) {
    const auto failed = fail_each_allocation([] { return 0; },
                                             [](int) {
                                                 const SGD sgd;
                                                 const SGDW sgdw;
                                                 const Adam adam;
                                                 AdamW adamw;
                                                 const AdamW moved = std::move(adamw);
                                                 const Lion lion;
                                             },
                                             [](int, const FailedAllocation&) {});
    EXPECT_GT(failed, 10);
}

}  // namespace flashoptim
