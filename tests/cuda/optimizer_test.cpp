// The framework-free optimizers on a device, beside the same ones in memory of the host: everything that they hold must be the same
// bytes. If these fail, a C++ trainer on a GPU has another optimizer than on the CPU, or cannot take a run from one to the other.
#include <filesystem>

#include "emulated_runtime.h"
#include "flashoptim/checkpoint.h"
#include "flashoptim/cuda_device.h"
#include "subject.h"

namespace flashoptim::cuda {

namespace {

/// A weight and a gradient in device memory.
class DeviceTensor {
public:
    explicit DeviceTensor(Tensor& host)
        : memory_(std::max<std::size_t>(host.bytes().size(), 1)), view_(host.view()) {
        upload(host);
        view_.data = memory_.as<void>();
    }
    void upload(const Tensor& host) {
        if (!host.bytes().empty()) memory_.upload(host.bytes().data(), host.bytes().size());
    }
    [[nodiscard]] const TensorView& view() const { return view_; }

private:
    DeviceCopy memory_;
    TensorView view_;
};

/// The same parameters in two optimizers, one of them on a device.
class Pair {
public:
    Pair(const RuleCase& rule, OptimizerOptions options, int device = 0)
        : host_(rule.rule, rule.hyperparameters, options),
          device_(rule.rule, rule.hyperparameters, on(options, device)) {
        EXPECT_EQ(cudaSetDevice(device), cudaSuccess);  // where its tensors come to lie
        Noise noise(7);
        for (const auto& shape : {std::vector<std::int64_t>{40, 160}, {77}, {3, 5}, {0, 4}}) {
            auto& w = *weights_.emplace_back(std::make_unique<Tensor>(DType::kBFloat16, shape));
            gradients_.push_back(std::make_unique<Tensor>(DType::kBFloat16, shape));
            w.fill([&] { return noise.normal(); });
            device_weights_.push_back(std::make_unique<DeviceTensor>(w));
            device_gradients_.push_back(std::make_unique<DeviceTensor>(*gradients_.back()));
            const auto id = host_.add_parameter(w.view(), std::string(weights_.size(), 'p'));
            device_.add_parameter(device_weights_.back()->view(), host_.name(id));
            host_.set_gradient(id, gradients_.back()->view());
            device_.set_gradient(id, device_gradients_.back()->view());
        }
    }
    static OptimizerOptions on(OptimizerOptions options, int device) {
        options.device = std::make_shared<Device>(device);
        return options;
    }
    void fill_gradients(std::uint64_t t, bool with_bad = false) {
        Noise noise(100 + t);
        for (std::size_t n = 0; n < gradients_.size(); ++n) {
            gradients_[n]->fill([&] { return noise.wide(); });
            if (with_bad && n == 1) {
                gradients_[n]->set(3, NAN);
                gradients_[n]->set(60, INFINITY);
            }
            device_gradients_[n]->upload(*gradients_[n]);
        }
    }
    void expect_same() {
        for (Optimizer::ParameterId id = 0; id < host_.parameter_count(); ++id) {
            auto tensors = host_.state(id), found = device_.state(id);
            tensors.push_back(host_.stored_weight(id));
            found.push_back(device_.stored_weight(id));
            ASSERT_EQ(tensors.size(), found.size());
            for (std::size_t n = 0; n < tensors.size(); ++n) {
                EXPECT_EQ(tensors[n].name, found[n].name);
                EXPECT_TRUE(std::ranges::equal(tensors[n].bytes, found[n].bytes)) << tensors[n].name;
            }
            EXPECT_EQ(host_.step_count(id), device_.step_count(id));
            EXPECT_EQ(host_.bad_elements(id), device_.bad_elements(id)) << host_.name(id);
            EXPECT_EQ(host_.has_momentum(id), device_.has_momentum(id));
            EXPECT_EQ(host_.master(id), device_.master(id));
            EXPECT_EQ(host_.first_moment(id), device_.first_moment(id));
            EXPECT_EQ(host_.second_moment(id), device_.second_moment(id));
        }
    }

    AnyOptimizer& host() { return host_; }
    AnyOptimizer& device() { return device_; }

private:
    std::vector<std::unique_ptr<Tensor>> weights_, gradients_;
    std::vector<std::unique_ptr<DeviceTensor>> device_weights_, device_gradients_;
    AnyOptimizer host_, device_;
};

OptimizerOptions native(NonFinite nonfinite = NonFinite::kSkipElement) {
    OptimizerOptions options;
    options.storage.min_quantized_numel = 100;
    options.nonfinite = nonfinite;
    return options;
}
RuleCase adamw() { return rule_cases()[4]; }

class CudaOptimizer : public ::testing::Test {
    void TearDown() override {
        emulated::set_device_count(1);
        EXPECT_EQ(emulated::allocated_bytes(0), 0U);
        EXPECT_EQ(emulated::allocated_bytes(1), 0U);
    }
};

}  // namespace

TEST_F(CudaOptimizer, HasTheBytesOfTheCpu) {
    for (const auto& rule : rule_cases()) {
        for (const auto format : {Format::kNative, Format::kPaper, Format::kFloat32}) {
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

// A wait in every step would leave the device idle.
TEST_F(CudaOptimizer, StepsWaitForNothing) {
    Pair pair(adamw(), native());
    pair.fill_gradients(1, true);
    pair.host().step();
    pair.device().step();
    const auto before = emulated::waits();
    for (int t = 0; t < 5; ++t) {
        pair.host().step();
        EXPECT_EQ(pair.device().step().bad_elements, 0U);
    }
    EXPECT_EQ(emulated::waits(), before);
    pair.expect_same();
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
    const auto folder = std::filesystem::temp_directory_path() / "flashoptim_cuda_optimizer_test";
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

TEST_F(CudaOptimizer, StateLiesOnItsDevice) {
    emulated::set_device_count(2);
    Pair pair(adamw(), native(), 1);
    EXPECT_GE(emulated::allocated_bytes(1), pair.device().memory_report().total());
    pair.fill_gradients(1);
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    pair.host().step();
    pair.device().step();
    EXPECT_EQ(emulated::allocated_bytes(0), 0U);
    pair.expect_same();
}

TEST_F(CudaOptimizer, MemoryOfAnotherDeviceIsRefused) {
    emulated::set_device_count(2);
    Tensor weight(DType::kBFloat16, {4, 8});
    const DeviceTensor on_first(weight);
    AnyOptimizer optimizer(Rule::kLion, {}, Pair::on(native(), 1));
    expect_refused<InvalidArgument>("w lies on CUDA device 0 and its optimizer on 1: make an optimizer",
                                    [&] { optimizer.add_parameter(on_first.view(), "w"); });

    void* page_locked = nullptr;
    ASSERT_EQ(cudaMallocHost(&page_locked, weight.bytes().size()), cudaSuccess);
    auto view = weight.view();
    view.data = page_locked;
    EXPECT_NO_THROW(optimizer.add_parameter(view));
    (void)cudaFreeHost(page_locked);
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
    expect_refused<InvalidArgument>("has 0 bytes of nothing",
                                    [&] { optimizer.set_stored(0, "nothing", std::vector<std::byte>(3)); });
    expect_refused<Error>("CUDA device 1 does not exist", [] { const Device device(1); });
    Tensor of_host(DType::kBFloat16, {40, 160});
    expect_refused<InvalidArgument>("pppppp lies in memory of the host: give memory of CUDA device 0",
                                    [&] { optimizer.add_parameter(of_host.view(), "pppppp"); });
    expect_refused<InvalidArgument>("the gradient of p lies in memory of the host",
                                    [&] { optimizer.set_gradient(0, of_host.view()); });
    emulated::fail("cudaMalloc", cudaErrorMemoryAllocation, 2);
    Tensor large(DType::kBFloat16, {64, 64});
    const DeviceTensor on_device(large);
    expect_refused<Error>("out of memory", [&] { optimizer.add_parameter(on_device.view()); });
    EXPECT_EQ(optimizer.parameter_count(), 4U);
    pair.fill_gradients(1);
    pair.host().step();
    optimizer.step();
    pair.expect_same();
}

}  // namespace flashoptim::cuda
