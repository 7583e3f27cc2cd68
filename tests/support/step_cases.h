// Helpers of several tests: tensors that own their memory, noise that follows from a seed, an optimizer whose
// rule is a value, everything an optimizer holds as bytes, messages of errors.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "comparison.h"
#include "flashoptim/flashoptim.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/float16.h"

namespace flashoptim {

/// SplitMix64 (Steele, Lea and Flood 2014): the same numbers on every machine.
class Noise {
public:
    explicit Noise(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15U + 1) {}
    std::uint64_t bits() {
        std::uint64_t z = (state_ += 0x9E3779B97F4A7C15U);
        z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
        return z ^ (z >> 31U);
    }
    /// Even in [-1, 1).
    double even() { return static_cast<double>(bits() >> 11U) * 0x1p-52 - 1.0; }
    /// Near normal, standard deviation 1.
    double normal() {
        double sum = 0.0;
        for (int n = 0; n < 12; ++n) sum += even();
        return sum / 2.0;
    }
    /// Of either sign, magnitudes over several decades, a tenth of them zero.
    float wide() {
        const auto choice = bits() % 10;
        return choice == 0 ? 0.0F : static_cast<float>(normal() * std::pow(10.0, even() * 4.0));
    }

private:
    std::uint64_t state_;
};

/// A tensor of any dtype and stride order with memory of its own.
class Tensor {
public:
    Tensor(DType dtype, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides = {})
        : view_{nullptr, dtype, std::move(shape), std::move(strides)} {
        if (view_.strides.empty()) view_.strides = row_major_strides(view_.shape);
        bytes_.resize(static_cast<std::size_t>(view_.numel()) * size_of(dtype));
    }
    TensorView view() {
        view_.data = bytes_.data();
        return view_;
    }
    [[nodiscard]] std::size_t numel() const { return bytes_.size() / size_of(view_.dtype); }
    [[nodiscard]] std::vector<std::byte>& bytes() { return bytes_; }
    [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

    /// Element `place` in memory order.
    [[nodiscard]] float get(std::size_t place) const {
        if (view_.dtype == DType::kFloat32) return load<float>(place);
        const auto bits = load<std::uint16_t>(place);
        return view_.dtype == DType::kBFloat16 ? static_cast<float>(bfloat16::from_bits(bits))
                                               : static_cast<float>(float16::from_bits(bits));
    }
    void set(std::size_t place, float value) {
        if (view_.dtype == DType::kFloat32) return store(place, value);
        store(place, view_.dtype == DType::kBFloat16 ? bfloat16(value).bits : float16(value).bits);
    }
    /// The bits of a stored element, of the type that they have in memory.
    template <class Bits>
    void set_bits(std::size_t place, Bits bits) {
        store(place, bits);
    }
    template <class Make>
    void fill(Make make) {
        for (std::size_t n = 0; n < numel(); ++n) set(n, static_cast<float>(make()));
    }
    [[nodiscard]] std::vector<float> values() const {
        std::vector<float> all(numel());
        for (std::size_t n = 0; n < all.size(); ++n) all[n] = get(n);
        return all;
    }

private:
    template <class T>
    [[nodiscard]] T load(std::size_t place) const {
        T value;
        std::memcpy(&value, bytes_.data() + place * sizeof(T), sizeof(T));
        return value;
    }
    template <class T>
    void store(std::size_t place, T value) {
        std::memcpy(bytes_.data() + place * sizeof(T), &value, sizeof(T));
    }

    TensorView view_;
    std::vector<std::byte> bytes_;
};

/// A rule with hyperparameters under which everything it has is in use.
struct RuleCase {
    std::string name;
    Rule rule;
    Hyperparameters hyperparameters;
    friend void PrintTo(const RuleCase& rule, std::ostream* to) { *to << rule.name; }
};
inline std::vector<RuleCase> rule_cases() {
    Hyperparameters h;
    h.learning_rate = 0.01;
    h.weight_decay = 0.1;
    auto momentum = h;
    momentum.momentum = 0.9;
    momentum.dampening = 0.25;
    auto nesterov = h;
    nesterov.momentum = 0.9;
    nesterov.nesterov = true;
    auto lion = h;
    lion.beta2 = 0.99;
    auto ademamix = h;
    ademamix.alpha = 3.0;
    ademamix.beta3 = 0.999;
    ademamix.alpha_warmup = 5.0;
    ademamix.beta3_warmup = 3.5;
    auto adan = h;
    adan.beta3 = 0.99;
    auto no_prox = adan;
    no_prox.no_prox = true;
    return {{"SgdWithoutMomentum", Rule::kSGD, h},
            {"SgdMomentum", Rule::kSGD, momentum},
            {"SgdwNesterov", Rule::kSGDW, nesterov},
            {"Adam", Rule::kAdam, h},
            {"AdamW", Rule::kAdamW, h},
            {"Lion", Rule::kLion, lion},
            {"AdEMAMix", Rule::kAdEMAMix, ademamix},
            {"Adan", Rule::kAdan, adan},
            {"AdanNoProx", Rule::kAdan, no_prox}};
}

/// How moments and weights are stored.
struct StorageCase {
    std::string name;
    StorageOptions options;
    DType weight;
};
/// Every format, weight dtype and number of master bits that exists; nothing is spared for its size.
inline std::vector<StorageCase> storage_cases() {
    std::vector<StorageCase> cases;
    for (const auto format : {Format::kNative, Format::kPaper, Format::kFloat32}) {
        const bool is_paper = format == Format::kPaper;
        const std::string format_name = format == Format::kNative ? "Native" : is_paper ? "Paper" : "Fp32";
        for (const bool quantize : {true, false}) {
            if (!quantize && !is_paper) continue;  // native without codes is fp32
            for (const auto weight : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
                for (const int bits : {0, 16, 24, 32}) {
                    if ((weight == DType::kFloat32 && bits != 0) || (is_paper && bits == 16)) continue;
                    StorageOptions options{format, bits, quantize, 0, 0};
                    cases.push_back({format_name + (quantize ? "" : "Unquantized") + "_" +
                                         std::string(name_of(weight)) + "_" + std::to_string(bits),
                                     options, weight});
                }
            }
        }
    }
    return cases;
}

/// Those in which a rule can be stepped.
inline std::vector<StorageCase> storage_cases(Rule rule) {
    auto cases = storage_cases();
    std::erase_if(cases, [&](const StorageCase& storage) {
        return storage.options.format == Format::kPaper && !traits_of(rule).has_paper_order;
    });
    return cases;
}

/// Everything that a parameter consists of.
inline std::vector<std::byte> bytes_of(Optimizer& optimizer, Optimizer::ParameterId id) {
    const auto& weight = optimizer.weight(id);
    const auto* data = static_cast<const std::byte*>(weight.data);
    std::vector<std::byte> all(data, data + static_cast<std::size_t>(weight.numel()) * size_of(weight.dtype));
    for (const auto& tensor : optimizer.state(id))
        all.insert(all.end(), tensor.bytes.begin(), tensor.bytes.end());
    return all;
}
inline std::vector<std::byte> bytes_of(Optimizer& optimizer) {
    std::vector<std::byte> all;
    for (Optimizer::ParameterId id = 0; id < optimizer.parameter_count(); ++id) {
        const auto part = bytes_of(optimizer, id);
        all.insert(all.end(), part.begin(), part.end());
    }
    return all;
}

/// The same of an optimizer whose gradients were numbers, and so must be its weights and moments:
/// two NaNs may have equal bits.
inline std::vector<std::byte> bytes_of_numbers(Optimizer& optimizer) {
    EXPECT_TRUE(test::holds_numbers(optimizer));
    return bytes_of(optimizer);
}

/// The message of the `Expected` error that `action` must throw: one line. Empty, with a failure, if it
/// throws nothing or another.
template <class Expected, class Action>
std::string message_of(Action action) {
    try {
        action();
        ADD_FAILURE() << "nothing was thrown";
    } catch (const Expected& error) {
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
        return error.what();
    } catch (const std::exception& error) {
        ADD_FAILURE() << "another error was thrown: " << error.what();
    }
    return {};
}
template <class Expected, class Action>
void expect_refused(const std::string& part, Action action) {
    const auto message = message_of<Expected>(action);
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" is not in: " << message;
}

/// Whether two results are the same float, bit for bit.
inline std::uint32_t bits_of(float x) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

}  // namespace flashoptim
