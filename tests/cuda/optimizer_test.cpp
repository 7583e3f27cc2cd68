// The framework-free optimizers on a device, beside the same ones in memory of the host: everything that they
// hold must be the same bytes. If these fail, a C++ trainer on a GPU has another optimizer than on the CPU,
// or cannot take a run from one to the other.
#include <unistd.h>

#include <filesystem>

#include "flashoptim/checkpoint.h"
#include "optimizer_pair.h"

namespace flashoptim::cuda {

namespace {

class CudaOptimizer : public OnDevice {};

}  // namespace

TEST_F(CudaOptimizer, HasTheBytesOfTheCpu) {
    for (const auto& rule : rule_cases()) {
        for (const auto format : {Format::kNative, Format::kPaper, Format::kFloat32}) {
            if (format == Format::kPaper && !traits_of(rule.rule).has_paper_order) continue;
            auto options = native();
            options.storage.format = format;
            Pair pair(rule, options);
            for (std::uint64_t t = 1; t <= 3; ++t) {
                pair.fill_gradients(t, t == 2);
                pair.host().step();
                pair.device().step();
            }
            pair.expect_same();
        }
    }
}

// Some parameters alone, as gradient release does, then all, then all but one.
TEST_F(CudaOptimizer, ListsThatChange) {
    Pair pair(adamw(), native());
    for (std::uint64_t t = 1; t <= 6; ++t) {
        pair.fill_gradients(t, true);
        for (auto* optimizer : {&pair.host(), &pair.device()}) {
            optimizer->step_parameter(1);
            if (t == 3) optimizer->clear_gradient(2);
            optimizer->step();
            optimizer->set_learning_rate(0.01 / static_cast<double>(t));
        }
    }
    pair.expect_same();
}

TEST_F(CudaOptimizer, FactorNormAndMasters) {
    Pair pair(adamw(), native());
    pair.fill_gradients(1);
    for (auto* optimizer : {&pair.host(), &pair.device()}) optimizer->set_gradient_factor(0.25);
    EXPECT_EQ(pair.host().grad_norm(), pair.device().grad_norm());
    for (auto* optimizer : {&pair.host(), &pair.device()}) {
        optimizer->step();
        auto masters = optimizer->master(0);
        for (auto& value : masters) value *= 1.001F;
        optimizer->set_master(0, masters);
        optimizer->refresh_masters(1);
        optimizer->step();
    }
    pair.expect_same();
    EXPECT_EQ(pair.host().memory_report().total(), pair.device().memory_report().total());
}

// A loss scaler's tensors stay on the device; what they keep back is neither stepped nor counted there.
TEST_F(CudaOptimizer, NumbersInDeviceMemory) {
    for (const auto& rule : rule_cases()) {
        Pair pair(rule, native());
        PairedNumber scale(3.0F), found_inf(0.0F);
        pair.host().set_grad_scale(scale.here());
        pair.device().set_grad_scale(scale.on_device());
        pair.host().set_found_inf(found_inf.here());
        pair.device().set_found_inf(found_inf.on_device());
        for (std::uint64_t t = 0; t < 9; ++t) {
            pair.fill_gradients(t, t == 4);
            found_inf.set(t == 0 || t == 5 ? 1.0F : 0.0F);
            scale.set(t < 6 ? 3.0F : 0.5F);
            if (t % 3 == 1) {
                const double norm = *pair.host().clip_grad_norm(0.01);
                const double* const on_device = pair.device().clip_grad_norm(0.01);
                EXPECT_EQ(pair.device().grad_norm(), norm);
                double given = 0.0;
                DeviceCopy::check(cudaMemcpy(&given, on_device, sizeof given, cudaMemcpyDeviceToHost));
                EXPECT_EQ(given, norm);
            }
            if (t == 3) pair.expect_same();  // collects, and counting begins again
            if (t == 7) {
                pair.host().set_found_inf(nullptr);
                pair.device().set_found_inf(nullptr);
            }
            for (auto* optimizer : {&pair.host(), &pair.device()}) {
                if (t == 2) optimizer->step_parameter(1);
                optimizer->step();
                if (t == 6) optimizer->set_step_count(2, 20);
            }
        }
        pair.expect_same();
    }
}

TEST_F(CudaOptimizer, FoundInfGoesBeforeThePolicies) {
    for (const auto policy : {NonFinite::kSkipStep, NonFinite::kError}) {
        Pair pair(adamw(), native(policy));
        const PairedNumber found_inf(1.0F), scale(2.0F);
        pair.host().set_found_inf(found_inf.here());
        pair.device().set_found_inf(found_inf.on_device());
        pair.host().set_grad_scale(scale.here());
        pair.device().set_grad_scale(scale.on_device());
        pair.fill_gradients(1, true);
        for (auto* optimizer : {&pair.host(), &pair.device()}) {
            EXPECT_TRUE(optimizer->step().skipped);
            optimizer->set_found_inf(nullptr);
        }
        pair.expect_same();
        pair.fill_gradients(2);
        for (auto* optimizer : {&pair.host(), &pair.device()}) EXPECT_FALSE(optimizer->step().skipped);
        pair.expect_same();
    }
}

// Momentum that is switched on and off while the device counts the steps, and parameters that come later.
TEST_F(CudaOptimizer, WhatChangesUnderFoundInf) {
    for (const bool begins_with_momentum : {false, true}) {
        auto rule = rule_cases()[0];
        rule.hyperparameters.momentum = begins_with_momentum ? 0.9 : 0.0;
        Pair pair(rule, native());
        const PairedNumber found_inf(0.0F);
        pair.host().set_found_inf(found_inf.here());
        pair.device().set_found_inf(found_inf.on_device());
        const auto train = [&](std::uint64_t first) {
            for (std::uint64_t t = first; t < first + 3; ++t) {
                pair.fill_gradients(t);
                pair.host().step();
                pair.device().step();
            }
        };
        train(0);
        for (auto* optimizer : {&pair.host(), &pair.device()}) {
            auto changed = rule.hyperparameters;
            changed.momentum = begins_with_momentum ? 0.0 : 0.9;
            optimizer->set_hyperparameters(0, changed);
        }
        train(3);
        pair.add({70, 64});
        train(6);
        pair.expect_same();
        EXPECT_EQ(pair.device().step_count(0), 9);
        EXPECT_EQ(pair.device().step_count(4), 3);
    }
}

TEST_F(CudaOptimizer, PoliciesKeepTheStepBack) {
    Pair pair(adamw(), native(NonFinite::kSkipStep));
    pair.fill_gradients(1, true);
    for (auto* optimizer : {&pair.host(), &pair.device()}) {
        const auto report = optimizer->step();
        EXPECT_TRUE(report.skipped);
        EXPECT_EQ(report.bad_elements, 2U);
    }
    pair.expect_same();
    pair.fill_gradients(2);
    for (auto* optimizer : {&pair.host(), &pair.device()}) EXPECT_FALSE(optimizer->step().skipped);
    pair.expect_same();

    Pair strict(adamw(), native(NonFinite::kError));
    strict.fill_gradients(1, true);
    for (auto* optimizer : {&strict.host(), &strict.device()}) {
        expect_refused<NonFiniteError>("the gradient of pp has 2 elements", [&] { optimizer->step(); });
    }
    strict.expect_same();
}

// State saved on one side and loaded on the other, also into another format.
TEST_F(CudaOptimizer, CheckpointsGoBetweenDeviceAndHost) {
    const auto folder = std::filesystem::temp_directory_path() /
                        ("flashoptim_cuda_optimizer_test" + std::to_string(::getpid()));
    const auto train = [](Pair& pair) {
        for (std::uint64_t t = 1; t <= 2; ++t) {
            pair.fill_gradients(t);
            pair.host().step();
            pair.device().step();
        }
    };
    for (const bool from_device : {true, false}) {
        Pair saved(adamw(), native()), loaded(adamw(), native());
        train(saved);
        std::filesystem::remove_all(folder);
        save_optimizer(from_device ? saved.device() : saved.host(), folder, {.weights = true});
        load_optimizer(loaded.device(), folder, {.weights = true});
        load_optimizer(loaded.host(), folder, {.weights = true});
        loaded.expect_same();
        EXPECT_EQ(loaded.device().master(0), saved.host().master(0));

        auto other = native();
        other.storage.master_weight_bits = 32;
        Pair converted(adamw(), other);
        const auto report = load_optimizer(converted.device(), folder, {.weights = true, .convert = true});
        EXPECT_FALSE(report.converted.empty());
        EXPECT_EQ(converted.device().master(0), saved.host().master(0));
    }
    std::filesystem::remove_all(folder);
}

TEST_F(CudaOptimizer, WhatCannotBeIsRefused) {
    Pair pair(adamw(), native());
    auto& optimizer = pair.device();
    Tensor transposed(DType::kFloat32, {40, 160}, {1, 40});
    expect_refused<InvalidArgument>("lies in another memory order than its weight",
                                    [&] { optimizer.set_gradient(0, transposed.view()); });
    expect_refused<InvalidArgument>("has 6400 bytes of error_bits, not 3", [&] {
        optimizer.set_stored(0, "error_bits", std::vector<std::byte>(3));
    });
    expect_refused<InvalidArgument>("has no buffer that is called nothing",
                                    [&] { optimizer.set_stored(0, "nothing", std::vector<std::byte>(3)); });
    const int count = device_count();
    expect_refused<CudaError>("CUDA device " + std::to_string(count) + " does not exist",
                              [&] { const CudaDevice device(count); });
    Tensor of_host(DType::kBFloat16, {40, 160});
    expect_refused<InvalidArgument>("pppppp lies in memory of the host: give memory of CUDA device 0",
                                    [&] { optimizer.add_parameter(of_host.view(), "pppppp"); });
    expect_refused<InvalidArgument>("the gradient of p lies in memory of the host",
                                    [&] { optimizer.set_gradient(0, of_host.view()); });
    const float number = 1.0F;
    expect_refused<InvalidArgument>("the grad scale lies in memory of the host",
                                    [&] { optimizer.set_grad_scale(&number); });
    expect_refused<InvalidArgument>("found_inf lies in memory of the host",
                                    [&] { optimizer.set_found_inf(&number); });
    EXPECT_EQ(optimizer.parameter_count(), 4U);
}

}  // namespace flashoptim::cuda
