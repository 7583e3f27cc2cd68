// What the tests of the LibTorch optimizers share: one way to make each optimizer,
// streams of gradients, comparisons.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "flashoptim/libtorch.h"
#include "flashoptim/libtorch_headers.h"

namespace flashoptim::libtorch {

using Tensors = std::vector<torch::Tensor>;

inline constexpr Rule kEveryRule[] = {Rule::kSGD,  Rule::kSGDW,     Rule::kAdam, Rule::kAdamW,
                                      Rule::kLion, Rule::kAdEMAMix, Rule::kAdan};
inline constexpr Format kFormats[] = {Format::kNative, Format::kPaper, Format::kFloat32};

template <class Optimizer, class Options>
std::unique_ptr<FlashOptimizer> make(const Tensors& parameters, Options options, Format format) {
    options.format(format).min_quantized_numel(0).min_quantized_numel_1d(0);  // compress small tensors too
    return std::make_unique<Optimizer>(parameters, options);
}

/// An optimizer of each kind with every part of its rule in use.
inline std::unique_ptr<FlashOptimizer> make_optimizer(Rule rule, Format format, const Tensors& parameters,
                                                      double lr = 1e-2) {
    switch (rule) {
        case Rule::kSGD:
            return make<SGD>(parameters, SGDOptions(lr).momentum(0.9).weight_decay(1e-3), format);
        case Rule::kSGDW:
            return make<SGDW>(parameters, SGDWOptions(lr).momentum(0.9).nesterov(true).weight_decay(1e-2),
                              format);
        case Rule::kAdam:
            return make<Adam>(parameters, AdamOptions(lr).weight_decay(1e-3), format);
        case Rule::kAdamW:
            return make<AdamW>(parameters, AdamWOptions(lr).weight_decay(0.1), format);
        case Rule::kLion:
            return make<Lion>(parameters, LionOptions(lr).weight_decay(0.1), format);
        case Rule::kAdEMAMix:
            return make<AdEMAMix>(parameters, AdEMAMixOptions(lr).weight_decay(0.1), format);
        case Rule::kAdan:
            return make<Adan>(parameters, AdanOptions(lr).weight_decay(0.1), format);
    }
    return nullptr;
}

/// What save() writes.
inline std::string saved(const FlashOptimizer& optimizer) {
    std::ostringstream stream;
    torch::serialize::OutputArchive archive;
    optimizer.save(archive);
    archive.save_to(stream);
    return stream.str();
}

inline torch::Tensor parameter(const torch::Tensor& values, torch::Dtype dtype = torch::kFloat32) {
    return values.detach().to(dtype).clone().requires_grad_();
}

/// Parameters of several shapes, the same for the same seed.
inline Tensors parameters(std::uint64_t seed, torch::Dtype dtype) {
    torch::manual_seed(seed);
    return {parameter(torch::randn({40, 70}), dtype), parameter(torch::randn({33}), dtype),
            parameter(torch::randn({}), dtype), parameter(torch::randn({4, 3, 5, 8}), dtype)};
}

/// The gradients of step `step`, in the parameters' dtypes.
inline void set_gradients(const Tensors& parameters, std::int64_t step) {
    torch::manual_seed(static_cast<std::uint64_t>(1000 + step));
    for (const auto& p : parameters) p.mutable_grad() = (torch::randn(p.sizes()) * 0.1).to(p.scalar_type());
}

inline bool has_nan(const torch::Tensor& values) {
    return values.is_floating_point() && values.isnan().any().item<bool>();
}
/// Whether two tensors agree in shape, dtype and every bit, and hold no NaN: two NaNs may have equal bits.
inline bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
    if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes() || has_nan(a)) return false;
    const auto width = a.element_size() == 4   ? torch::kInt32
                       : a.element_size() == 2 ? torch::kInt16
                                               : torch::kInt8;
    return torch::equal(a.detach().contiguous().view(width), b.detach().contiguous().view(width));
}

/// Whether the values are numbers before and after, and differ somewhere.
inline bool has_moved(const torch::Tensor& before, const torch::Tensor& after) {
    return !has_nan(before) && !has_nan(after) && !torch::equal(before.detach(), after.detach());
}

/// Whether weights and states of two optimizers are numbers and equal bit for bit.
inline ::testing::AssertionResult same_everything(FlashOptimizer& a, const Tensors& of_a, FlashOptimizer& b,
                                                  const Tensors& of_b) {
    for (std::size_t n = 0; n < of_a.size(); ++n) {
        const auto failed = [n] { return ::testing::AssertionFailure() << "parameter " << n << ": "; };
        if (!same_bits(of_a[n], of_b[n])) return failed() << "weights differ or hold a NaN";
        if (a.step_count(of_a[n]) != b.step_count(of_b[n])) return failed() << "step counts differ";
        if (a.has_momentum(of_a[n]) != b.has_momentum(of_b[n])) return failed() << "has_momentum differs";
        const auto mine = a.state_tensors(of_a[n]);
        const auto theirs = b.state_tensors(of_b[n]);
        if (mine.size() != theirs.size()) return failed() << "states have other tensors";
        for (std::size_t t = 0; t < mine.size(); ++t) {
            if (mine[t].first != theirs[t].first || !same_bits(mine[t].second, theirs[t].second)) {
                return failed() << mine[t].first << " differs or holds a NaN";
            }
        }
    }
    return ::testing::AssertionSuccess();
}

/// The message of the error that a function throws; fails the test if it throws none or another.
template <class ErrorType, class Function>
std::string message_of(const Function& function) {
    try {
        function();
    } catch (const ErrorType& error) {
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos)
            << "more than one line: " << error.what();
        return error.what();
    } catch (const std::exception& error) {
        ADD_FAILURE() << "another error: " << error.what();
        return {};
    }
    ADD_FAILURE() << "no error";
    return {};
}

inline bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

/// Calls check(rule, format) for each rule in each format that it has; failures say which.
template <class Check>
void for_each_kind(const Check& check) {
    for (const auto rule : kEveryRule) {
        for (const auto format : kFormats) {
            if (format == Format::kPaper && !traits_of(rule).has_paper_order) continue;
            SCOPED_TRACE(std::string(name_of(rule)) + ", " + std::string(name_of(format)));
            check(rule, format);
        }
    }
}

/// Of `count` elements that a step skipped those that its report has: on a device none,
/// which is asked for them later.
std::uint64_t reported_at_once(std::uint64_t count);

}  // namespace flashoptim::libtorch
