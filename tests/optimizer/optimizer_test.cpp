// The public API of the framework-free optimizer: ranges, groups, learning rates, memory, masters, refusals.
#include <cstdlib>
#include <utility>

#include "../support/step_cases.h"

namespace flashoptim {

namespace {

/// A weight, its gradient of ones, and SGD over them: every update is the learning rate.
struct Ones {
    explicit Ones(Optimizer& to, Optimizer::GroupId group = 0) : optimizer(to) {
        gradient.fill([] { return 1.0F; });
        id = optimizer.add_parameter(weight.view(), {}, group);
        optimizer.set_gradient(id, gradient.view());
    }
    Optimizer& optimizer;
    Optimizer::ParameterId id = 0;
    Tensor weight{DType::kFloat32, {3}}, gradient{DType::kFloat32, {3}};
};

template <class Set>
void expect_range_error(Rule rule, const std::string& name, Set set) {
    Hyperparameters h;
    set(h);
    expect_refused<InvalidArgument>(name, [&] { Optimizer(rule, h); });
    Optimizer optimizer(rule, {});
    expect_refused<InvalidArgument>(name, [&] { optimizer.add_group(h); });
    expect_refused<InvalidArgument>(name, [&] { optimizer.set_hyperparameters(0, h); });
    EXPECT_EQ(optimizer.group_count(), 1U);
    EXPECT_EQ(optimizer.hyperparameters().learning_rate, Hyperparameters{}.learning_rate)
        << "a refused value was taken";
}

}  // namespace

TEST(Optimizer, HyperparametersOutOfTheirRangeAreNamed) {
    for (const double wrong : {-1.0, -1e-300, static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
        for (const auto rule : {Rule::kSGD, Rule::kSGDW, Rule::kAdam, Rule::kAdamW, Rule::kLion}) {
            expect_range_error(rule, "learning_rate", [&](auto& h) { h.learning_rate = wrong; });
            expect_range_error(rule, "weight_decay", [&](auto& h) { h.weight_decay = wrong; });
            expect_range_error(rule, "initial_learning_rate",
                               [&](auto& h) { h.initial_learning_rate = wrong; });
        }
        for (const auto rule : {Rule::kAdam, Rule::kAdamW, Rule::kLion}) {
            expect_range_error(rule, "beta1", [&](auto& h) { h.beta1 = wrong; });
            expect_range_error(rule, "beta2", [&](auto& h) { h.beta2 = wrong; });
        }
        for (const auto rule : {Rule::kAdam, Rule::kAdamW}) {
            expect_range_error(rule, "epsilon", [&](auto& h) { h.epsilon = wrong; });
        }
        for (const auto rule : {Rule::kSGD, Rule::kSGDW}) {
            expect_range_error(rule, "momentum", [&](auto& h) { h.momentum = wrong; });
            expect_range_error(rule, "dampening", [&](auto& h) { h.dampening = wrong; });
        }
    }
    // What a rule does not read is saved too, as text that has no NaN: it must be a number.
    for (const double wrong : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
        expect_range_error(Rule::kLion, "epsilon", [&](auto& h) { h.epsilon = wrong; });
        for (const auto rule : {Rule::kAdam, Rule::kAdamW, Rule::kLion}) {
            expect_range_error(rule, "momentum", [&](auto& h) { h.momentum = wrong; });
            expect_range_error(rule, "dampening", [&](auto& h) { h.dampening = wrong; });
        }
        for (const auto rule : {Rule::kSGD, Rule::kSGDW}) {
            expect_range_error(rule, "beta1", [&](auto& h) { h.beta1 = wrong; });
            expect_range_error(rule, "beta2", [&](auto& h) { h.beta2 = wrong; });
            expect_range_error(rule, "epsilon", [&](auto& h) { h.epsilon = wrong; });
        }
    }
    // Adam divides by 1 - beta; Lion does not.
    for (const auto rule : {Rule::kAdam, Rule::kAdamW}) {
        expect_range_error(rule, "beta1 is 1:", [](auto& h) { h.beta1 = 1.0; });
        expect_range_error(rule, "beta2 is 1:", [](auto& h) { h.beta2 = 1.0; });
    }
    EXPECT_NO_THROW(Lion({.beta1 = 1.0, .beta2 = 1.0}));
    expect_range_error(Rule::kLion, "beta1 is 1.5", [](auto& h) { h.beta1 = 1.5; });
    expect_range_error(Rule::kSGD, "nesterov", [](auto& h) { h.nesterov = true; });
    expect_range_error(Rule::kSGD, "nesterov", [](auto& h) {
        h.nesterov = true;
        h.momentum = 0.9;
        h.dampening = 0.1;
    });
    for (const auto rule : {Rule::kSGD, Rule::kAdam}) {
        expect_range_error(rule, "fully_decoupled", [](auto& h) { h.fully_decoupled = true; });
    }
    // The number itself is shown, not a rounded one that looks right.
    expect_range_error(Rule::kSGD, "-1e-09", [](auto& h) { h.learning_rate = -1e-9; });
}

TEST(Optimizer, NamedOptimizersCarryTheirDefaults) {
    EXPECT_EQ(AdamW().hyperparameters().weight_decay, 1e-2);
    EXPECT_EQ(Adam().hyperparameters().weight_decay, 0.0);
    EXPECT_EQ(Lion().hyperparameters().learning_rate, 1e-4);
    EXPECT_EQ(Lion().hyperparameters().beta2, 0.99);
    EXPECT_EQ(SGD().rule(), Rule::kSGD);
    EXPECT_EQ(SGDW().rule(), Rule::kSGDW);
    const SGDW nesterov(
        {.momentum = 0.9, .weight_decay = 0.1, .nesterov = true, .maximize = true, .fully_decoupled = true});
    EXPECT_TRUE(nesterov.hyperparameters().nesterov && nesterov.hyperparameters().maximize);
    EXPECT_TRUE(nesterov.hyperparameters().fully_decoupled);
    EXPECT_EQ(nesterov.hyperparameters().initial_learning_rate, nesterov.hyperparameters().learning_rate);
}

TEST(Optimizer, LearningRateChangesBetweenSteps) {
    SGD optimizer({.learning_rate = 1.0});
    Hyperparameters fast;
    fast.learning_rate = 2.0;
    const auto group = optimizer.add_group(fast);
    Ones slow(optimizer), other(optimizer, group);
    optimizer.step();
    EXPECT_EQ(slow.weight.get(0), -1.0F);
    EXPECT_EQ(other.weight.get(0), -2.0F);
    optimizer.set_learning_rate(group, 4.0);
    optimizer.step();
    EXPECT_EQ(slow.weight.get(0), -2.0F);
    EXPECT_EQ(other.weight.get(0), -6.0F);
    optimizer.set_learning_rate(0.0);
    optimizer.step();
    EXPECT_EQ(other.weight.get(0), -6.0F);
    optimizer.set_learning_rate(1.0);
    optimizer.step();
    EXPECT_EQ(slow.weight.get(0), -3.0F);
    EXPECT_EQ(other.weight.get(0), -7.0F);
    expect_refused<InvalidArgument>("learning_rate", [&] { optimizer.set_learning_rate(-1.0); });
    expect_refused<InvalidArgument>("group 7", [&] { optimizer.set_learning_rate(7, 1.0); });
}

// Decay that is decoupled from the schedule too: 1 - wd * lr / first lr. Replacing the
// hyperparameters must not switch it off.
TEST(Optimizer, FullyDecoupledDecayIsMeasuredByTheFirstLearningRate) {
    SGDW optimizer({.learning_rate = 0.5, .weight_decay = 0.25, .fully_decoupled = true});
    Tensor weight(DType::kFloat32, {1}), gradient(DType::kFloat32, {1});
    weight.set(0, 1.0F);
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    optimizer.step();
    EXPECT_EQ(weight.get(0), 0.75F);
    optimizer.set_learning_rate(0.25);
    optimizer.step();
    EXPECT_EQ(weight.get(0), 0.75F * 0.875F);
    Hyperparameters anew;  // with an initial_learning_rate of 0: the group's stays
    anew.learning_rate = 0.5;
    anew.weight_decay = 1.0;
    anew.fully_decoupled = true;
    optimizer.set_hyperparameters(0, anew);
    EXPECT_EQ(optimizer.hyperparameters().initial_learning_rate, 0.5);
    optimizer.step();
    EXPECT_EQ(weight.get(0), 0.0F);
    anew.learning_rate = 0.0;
    expect_refused<InvalidArgument>("initial_learning_rate is 0", [&] { optimizer.add_group(anew); });
}

// The claim of the project, byte for byte.
TEST(Optimizer, MemoryReportCountsEveryByte) {
    const std::vector<std::int64_t> shape = {64, 1024};
    constexpr std::size_t kCount = 65536;
    const auto report_of = [&](Optimizer&& optimizer, DType dtype) {
        Tensor weight(dtype, shape), gradient(dtype, shape);
        optimizer.add_parameter(weight.view());
        EXPECT_EQ(optimizer.memory_report().gradients, 0U);
        optimizer.set_gradient(0, gradient.view());
        optimizer.step();
        return optimizer.memory_report();
    };
    OptimizerOptions fp32;
    fp32.storage.format = Format::kFloat32;
    const auto adamw = report_of(AdamW(), DType::kBFloat16);
    EXPECT_EQ(adamw.parameters, 65536);
    EXPECT_EQ(adamw.weights, 2 * kCount);
    EXPECT_EQ(adamw.corrections, kCount);
    EXPECT_EQ(adamw.moments, 2 * kCount);
    EXPECT_EQ(adamw.scales, kCount / 8);
    EXPECT_EQ(adamw.gradients, 2 * kCount);
    EXPECT_EQ(adamw.total(), kCount * 57 / 8);                                 // 7.125 bytes per parameter
    EXPECT_EQ(report_of(Lion(), DType::kBFloat16).total(), kCount * 97 / 16);  // 6.0625
    EXPECT_EQ(report_of(SGD({.momentum = 0.9}), DType::kBFloat16).total(), kCount * 97 / 16);
    EXPECT_EQ(report_of(SGD(), DType::kBFloat16).total(), kCount * 5);
    EXPECT_EQ(report_of(AdamW({}, fp32), DType::kFloat32).total(), kCount * 16);
    OptimizerOptions paper;
    paper.storage.format = Format::kPaper;
    EXPECT_EQ(report_of(AdamW({}, paper), DType::kBFloat16).total(), kCount * 57 / 8);
    OptimizerOptions wide;
    wide.storage.master_weight_bits = 32;
    EXPECT_EQ(report_of(AdamW({}, wide), DType::kFloat16).total(), kCount * 65 / 8);
}

TEST(Optimizer, SmallTensorsKeepFp32Moments) {
    AdamW optimizer;
    const auto moments_of = [&](std::vector<std::int64_t> shape) {
        static std::vector<Tensor> kept;
        kept.emplace_back(DType::kBFloat16, std::move(shape));
        return optimizer.storage(optimizer.add_parameter(kept.back().view())).moments;
    };
    EXPECT_EQ(moments_of({64, 63}), MomentStorage::kFloat32);
    EXPECT_EQ(moments_of({64, 64}), MomentStorage::kNative);
    EXPECT_EQ(moments_of({65536}), MomentStorage::kFloat32);
    EXPECT_EQ(moments_of({1, 65536, 1}), MomentStorage::kFloat32);
    EXPECT_EQ(moments_of({65537}), MomentStorage::kNative);
    EXPECT_EQ(moments_of({10000, 7}), MomentStorage::kFloat32);  // rows shorter than 8
    EXPECT_EQ(moments_of({10000, 8}), MomentStorage::kNative);
    EXPECT_EQ(moments_of({}), MomentStorage::kFloat32);
    OptimizerOptions all;
    all.storage.min_quantized_numel = all.storage.min_quantized_numel_1d = 0;
    AdamW quantizing({}, all);
    Tensor scalar(DType::kBFloat16, {}), shorter(DType::kBFloat16, {2, 7});
    EXPECT_EQ(quantizing.storage(quantizing.add_parameter(scalar.view())).moments, MomentStorage::kNative);
    EXPECT_EQ(quantizing.storage(quantizing.add_parameter(shorter.view())).moments, MomentStorage::kFloat32);
    all.storage.quantize = false;
    AdamW plain({}, all);
    Tensor large(DType::kBFloat16, {100, 100});
    EXPECT_EQ(plain.storage(plain.add_parameter(large.view())).moments, MomentStorage::kFloat32);
}

TEST(Optimizer, MastersAreReadWrittenAndRefreshed) {
    for (const auto dtype : {DType::kBFloat16, DType::kFloat16}) {
        Tensor weight(dtype, {4, 10});
        weight.fill([] { return 1.0F; });
        AdamW optimizer;
        optimizer.add_parameter(weight.view());
        EXPECT_EQ(optimizer.master(0), weight.values()) << "the weight is the master when it is added";
        std::vector<float> exact(40);
        for (std::size_t n = 0; n < 40; ++n) exact[n] = 1.0F + static_cast<float>(n) * 0x1p-15F;
        optimizer.set_master(0, exact);
        EXPECT_EQ(optimizer.master(0), exact);
        EXPECT_EQ(weight.get(39), dtype == DType::kBFloat16 ? 1.0F : 1.0F + 0x1p-10F)
            << "the weight itself is rounded";
        weight.fill([] { return 2.0F; });  // somebody else writes it
        EXPECT_TRUE(test::has_moved(2.0F, optimizer.master(0)[39]));
        optimizer.refresh_masters();
        EXPECT_EQ(optimizer.master(0), std::vector<float>(40, 2.0F));
        std::vector<float> shorter(39);
        expect_refused<InvalidArgument>("40 elements", [&] { optimizer.set_master(0, shorter); });
        expect_refused<InvalidArgument>("40 elements", [&] { optimizer.copy_master(0, shorter); });
        optimizer.set_master(0, std::vector<float>(40, INFINITY));
        EXPECT_EQ(optimizer.master(0), std::vector<float>(40, INFINITY));
    }
}

TEST(Optimizer, WhatCannotBeSteppedIsRefusedByName) {
    AdamW optimizer;
    std::vector<float> memory(100);
    const auto add = [&](float* at, DType dtype, std::vector<std::int64_t> shape,
                         std::vector<std::int64_t> strides = {}) {
        return optimizer.add_parameter({at, dtype, std::move(shape), std::move(strides)}, "blocks.0.weight");
    };
    expect_refused<InvalidArgument>("blocks.0.weight",
                                    [&] { add(memory.data(), DType::kFloat32, {4, 5}, {0, 1}); });
    expect_refused<InvalidArgument>("blocks.0.weight is int8",
                                    [&] { add(memory.data(), DType::kInt8, {4}); });
    expect_refused<InvalidArgument>("blocks.0.weight has no data",
                                    [&] { add(nullptr, DType::kFloat32, {4}); });
    expect_refused<InvalidArgument>(
        "group 3", [&] { optimizer.add_parameter({memory.data(), DType::kFloat32, {4}, {}}, "x", 3); });
    EXPECT_EQ(optimizer.parameter_count(), 0U);

    add(memory.data() + 10, DType::kFloat32, {20});
    for (const auto& [first, count] : {std::pair{0, 11}, {29, 1}, {15, 3}, {10, 20}, {0, 100}}) {
        expect_refused<InvalidArgument>("overlaps blocks.0.weight", [&] {
            optimizer.add_parameter({memory.data() + first, DType::kFloat32, {count}, {}}, "tied");
        });
    }
    EXPECT_NO_THROW(add(memory.data(), DType::kFloat32, {10}));
    EXPECT_NO_THROW(add(memory.data() + 30, DType::kFloat32, {70}));
    EXPECT_NO_THROW(add(memory.data() + 12, DType::kFloat32, {0}));

    TensorView gradient{memory.data(), DType::kFloat32, {19}, {}};
    expect_refused<InvalidArgument>("another shape", [&] { optimizer.set_gradient(0, gradient); });
    gradient.shape = {20};
    gradient.dtype = DType::kInt16;
    expect_refused<InvalidArgument>("int16", [&] { optimizer.set_gradient(0, gradient); });
    gradient = {nullptr, DType::kFloat32, {20}, {}};
    expect_refused<InvalidArgument>("no data", [&] { optimizer.set_gradient(0, gradient); });
    expect_refused<InvalidArgument>("no gradient", [&] { optimizer.step_parameter(0); });
    expect_refused<InvalidArgument>("parameter 9 does not exist", [&] { optimizer.step_parameter(9); });
    expect_refused<InvalidArgument>("step count", [&] { optimizer.set_step_count(0, -1); });

    OptimizerOptions odd;
    odd.storage.master_weight_bits = 20;
    expect_refused<InvalidArgument>("master_weight_bits is 20", [&] { AdamW({}, odd); });
    odd.storage.master_weight_bits = 16;
    odd.storage.format = Format::kPaper;
    expect_refused<InvalidArgument>("paper", [&] { AdamW({}, odd); });
}

TEST(Optimizer, StepsWithNothingToDoDoNothing) {
    AdamW optimizer;
    EXPECT_EQ(optimizer.step().bad_elements, 0U);
    EXPECT_EQ(optimizer.grad_norm(), 0.0);
    EXPECT_EQ(optimizer.memory_report().total(), 0U);
    Tensor weight(DType::kBFloat16, {10});
    optimizer.add_parameter(weight.view());
    optimizer.step();
    EXPECT_EQ(optimizer.step_count(0), 0) << "a parameter without a gradient is not stepped";
    ThreadPool pool(4);
    step({}, pool);
    EXPECT_EQ(count_bad_gradients({}, pool), 0U);
}

TEST(Optimizer, MovesWithItsState) {
    SGD first({.learning_rate = 1.0});
    Ones ones(first);
    first.step();
    SGD second = std::move(first);
    second.step();
    EXPECT_EQ(ones.weight.get(0), -2.0F);
    EXPECT_EQ(second.step_count(0), 2);
    SGD third;
    third = std::move(second);
    third.step();
    EXPECT_EQ(ones.weight.get(0), -3.0F);
    EXPECT_EQ(third.name(0), "parameter 0");
}

// Files of years ago are found by these names.
TEST(Optimizer, RulesAndFormatsHaveNamesAndAreFoundByThem) {
    const std::pair<Rule, const char*> rules[] = {{Rule::kSGD, "SGD"},
                                                  {Rule::kSGDW, "SGDW"},
                                                  {Rule::kAdam, "Adam"},
                                                  {Rule::kAdamW, "AdamW"},
                                                  {Rule::kLion, "Lion"}};
    for (const auto& [rule, name] : rules) {
        EXPECT_EQ(name_of(rule), name);
        EXPECT_EQ(rule_named(name), rule);
    }
    const std::pair<Format, const char*> formats[] = {
        {Format::kNative, "native"}, {Format::kPaper, "paper"}, {Format::kFloat32, "fp32"}};
    for (const auto& [format, name] : formats) {
        EXPECT_EQ(name_of(format), name);
        EXPECT_EQ(format_named(name), format);
    }
    for (const char* stranger : {"", "adamw", "AdamW ", "Sophia", "nf4"}) {
        EXPECT_FALSE(rule_named(stranger) || format_named(stranger)) << stranger;
    }
}

TEST(Optimizer, BackendsHaveNamesAndTheScalarOneIsAlwaysThere) {
    const auto available = available_backends();
    ASSERT_GE(available.size(), 2U);
    EXPECT_EQ(available[0], Backend::kScalar);
    EXPECT_EQ(name_of(Backend::kScalar), "scalar");
    EXPECT_EQ(name_of(Backend::kAvx512Vbmi), "avx512-vbmi");
    for (const auto backend : {Backend::kNeon, Backend::kAvx2, Backend::kAvx512, Backend::kAvx512Vbmi}) {
        if (std::find(available.begin(), available.end(), backend) != available.end()) continue;
        OptimizerOptions options;
        options.backend = backend;
        expect_refused<InvalidArgument>(std::string(name_of(backend)), [&] { SGD({}, options); });
    }
}

// Whoever misspells a backend must not benchmark another one without knowing. Chosen once for a
// process, so a process of its own.
TEST(OptimizerDeathTest, AnUnknownBackendInTheEnvironmentIsAnError) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    EXPECT_EXIT(
        {
            ::setenv("FLASHOPTIM_BACKEND", "avx1024", 1);
            SGD optimizer;
            Ones ones(optimizer);
            try {
                optimizer.step();
            } catch (const InvalidArgument& error) {
                std::fprintf(stderr, "%s\n", error.what());
                std::exit(3);
            }
            std::exit(0);
        },
        ::testing::ExitedWithCode(3), "FLASHOPTIM_BACKEND=avx1024 is not a backend.*scalar, portable");
}

}  // namespace flashoptim
