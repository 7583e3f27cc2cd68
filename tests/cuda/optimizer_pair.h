// The same parameters in two of the framework-free optimizers, one of them on a device.
#pragma once

#include "flashoptim/cuda_device.h"
#include "subject.h"

namespace flashoptim::cuda {

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

/// A number where each of a pair reads it.
class PairedNumber {
public:
    explicit PairedNumber(float value) { set(value); }
    void set(float value) {
        here_ = value;
        on_device_.upload(&here_);
    }
    [[nodiscard]] const float* here() const { return &here_; }
    [[nodiscard]] const float* on_device() const { return on_device_.as<float>(); }

private:
    float here_ = 0.0F;
    DeviceCopy on_device_{sizeof(float)};
};

/// The same parameters in two optimizers, one of them on a device.
class Pair {
public:
    Pair(const RuleCase& rule, OptimizerOptions options, int device = 0)
        : host_(rule.rule, rule.hyperparameters, options),
          device_(rule.rule, rule.hyperparameters, on(options, device)) {
        EXPECT_EQ(cudaSetDevice(device), cudaSuccess);  // where its tensors come to lie
        for (const auto& shape : {std::vector<std::int64_t>{40, 160}, {77}, {3, 5}, {0, 4}}) add(shape);
    }
    void add(const std::vector<std::int64_t>& shape) {
        auto& w = *weights_.emplace_back(std::make_unique<Tensor>(DType::kBFloat16, shape));
        gradients_.push_back(std::make_unique<Tensor>(DType::kBFloat16, shape));
        w.fill([&] { return noise_.normal(); });
        device_weights_.push_back(std::make_unique<DeviceTensor>(w));
        device_gradients_.push_back(std::make_unique<DeviceTensor>(*gradients_.back()));
        const auto id = host_.add_parameter(w.view(), std::string(weights_.size(), 'p'));
        device_.add_parameter(device_weights_.back()->view(), host_.name(id));
        host_.set_gradient(id, gradients_.back()->view());
        device_.set_gradient(id, device_gradients_.back()->view());
    }
    static OptimizerOptions on(OptimizerOptions options, int device) {
        options.device = std::make_shared<CudaDevice>(device);
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
            EXPECT_EQ(test::moments_of(host_, id), test::moments_of(device_, id));
        }
    }

    Optimizer& host() { return host_; }
    Optimizer& device() { return device_; }

private:
    Noise noise_{7};
    std::vector<std::unique_ptr<Tensor>> weights_, gradients_;
    std::vector<std::unique_ptr<DeviceTensor>> device_weights_, device_gradients_;
    Optimizer host_, device_;
};

inline OptimizerOptions native(NonFinite nonfinite = NonFinite::kSkipElement) {
    OptimizerOptions options;
    options.storage.min_quantized_numel = 100;
    options.nonfinite = nonfinite;
    return options;
}
inline RuleCase adamw() { return rule_cases()[4]; }

}  // namespace flashoptim::cuda
