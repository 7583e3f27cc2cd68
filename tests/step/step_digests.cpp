// Prints a digest of what 50 steps leave behind, for every rule, format, weight dtype, number of master bits
// and gradient dtype, and for three shapes. The digests of released versions stand in step_digests.txt: a
// change of any bit of any step shows.
//     step_digests [BACKEND]               prints all lines
//     step_digests --check FILE [BACKEND]  names what differs from the file; exits with 1 if anything does
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "flashoptim/flashoptim.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/float16.h"

namespace flashoptim {

namespace {

constexpr int kSteps = 50;

/// FNV-1a, 64 bits (Fowler, Noll and Vo).
class Digest {
public:
    void add(const void* data, std::size_t size) {
        const auto* bytes = static_cast<const unsigned char*>(data);
        for (std::size_t n = 0; n < size; ++n) value_ = (value_ ^ bytes[n]) * 0x100000001b3U;
    }
    [[nodiscard]] std::string text() const {
        std::array<char, 17> text{};
        std::snprintf(text.data(), text.size(), "%016" PRIx64, value_);
        return text.data();
    }

private:
    std::uint64_t value_ = 0xcbf29ce484222325U;
};

/// Numbers that are the same on every machine: a 64-bit linear congruential generator
/// (Knuth), no function of libm.
class Numbers {
public:
    explicit Numbers(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15U + 1) {}
    std::uint32_t bits() {
        state_ = state_ * 6364136223846793005U + 1442695040888963407U;
        return static_cast<std::uint32_t>(state_ >> 32U);
    }
    /// Even in [-1, 1), on a grid of 2^-23.
    float even() { return static_cast<float>(static_cast<std::int32_t>(bits()) >> 8) * 0x1p-23F; }
    /// Of magnitudes from 2^-20 to 1; one in 16 is zero.
    float wide() {
        const auto choice = bits();
        if (choice % 16 == 0) return 0.0F;
        return even() / static_cast<float>(1U << (choice >> 4U) % 20);
    }

private:
    std::uint64_t state_;
};

std::vector<std::byte> stored(const std::vector<float>& values, DType dtype) {
    std::vector<std::byte> bytes(values.size() * size_of(dtype));
    for (std::size_t n = 0; n < values.size(); ++n) {
        const auto bits = dtype == DType::kBFloat16 ? bfloat16(values[n]).bits : float16(values[n]).bits;
        const void* from = dtype == DType::kFloat32 ? static_cast<const void*>(&values[n]) : &bits;
        std::memcpy(bytes.data() + n * size_of(dtype), from, size_of(dtype));
    }
    return bytes;
}

std::string digest_of(Rule rule, const Hyperparameters& hyperparameters, const OptimizerOptions& options,
                      DType weight_dtype, DType gradient_dtype, const std::vector<std::int64_t>& shape) {
    std::size_t numel = 1;
    for (const auto size : shape) numel *= static_cast<std::size_t>(size);
    Numbers numbers(numel);
    std::vector<float> values(numel);
    for (auto& value : values) value = numbers.even();
    auto weight = stored(values, weight_dtype);

    Optimizer optimizer(rule, hyperparameters, options);
    optimizer.add_parameter({weight.data(), weight_dtype, shape});
    Digest digest;
    for (int t = 0; t < kSteps; ++t) {
        for (auto& value : values) value = numbers.wide();
        auto gradient = stored(values, gradient_dtype);
        // A bad element: all bits set are a NaN of every dtype.
        if (t % 17 == 3) {
            std::memset(gradient.data() + numel / 2 * size_of(gradient_dtype), 0xff, size_of(gradient_dtype));
        }
        optimizer.set_gradient_factor(t % 5 == 4 ? 0.37 : 1.0);
        optimizer.set_learning_rate(t < 25 ? hyperparameters.learning_rate
                                           : hyperparameters.learning_rate / 3);
        optimizer.set_gradient(0, {gradient.data(), gradient_dtype, shape});
        optimizer.step();
        digest.add(weight.data(), weight.size());
    }
    for (const auto& tensor : optimizer.state(0)) {
        digest.add(tensor.name.data(), tensor.name.size());
        digest.add(tensor.bytes.data(), tensor.bytes.size());
    }
    return digest.text();
}

struct RuleCase {
    std::string_view name;
    Rule rule;
    Hyperparameters hyperparameters;
};
std::vector<RuleCase> rule_cases() {
    Hyperparameters h;
    h.learning_rate = 0.01;
    h.weight_decay = 0.1;
    auto momentum = h;
    momentum.momentum = 0.9;
    momentum.dampening = 0.25;
    auto nesterov = h;
    nesterov.momentum = 0.9;
    nesterov.nesterov = true;
    auto decoupled = h;
    decoupled.fully_decoupled = true;
    decoupled.maximize = true;
    auto lion = h;
    lion.beta2 = 0.99;
    auto ademamix = h;
    ademamix.alpha_warmup = 30.0;
    ademamix.beta3_warmup = 20.0;
    auto adan = default_hyperparameters(Rule::kAdan);
    adan.learning_rate = h.learning_rate;
    adan.weight_decay = h.weight_decay;
    return {{"sgd", Rule::kSGD, h},
            {"sgd_momentum", Rule::kSGD, momentum},
            {"sgdw_nesterov", Rule::kSGDW, nesterov},
            {"adam", Rule::kAdam, h},
            {"adamw", Rule::kAdamW, h},
            {"adamw_fully_decoupled_maximize", Rule::kAdamW, decoupled},
            {"lion", Rule::kLion, lion},
            {"ademamix", Rule::kAdEMAMix, ademamix},
            {"adan", Rule::kAdan, adan}};
}

const std::vector<std::pair<std::string_view, std::vector<std::int64_t>>>& shapes() {
    static const std::vector<std::pair<std::string_view, std::vector<std::int64_t>>> kShapes = {
        {"vector", {1536}}, {"rows", {12, 96}}, {"tails", {7, 67}}};
    return kShapes;
}

/// Calls each(key, digest) for every case.
template <class Each>
void for_each_case(Backend backend, Each each) {
    constexpr std::array kDTypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
    for (const auto& [rule_name, rule, hyperparameters] : rule_cases()) {
        for (const auto format : {Format::kNative, Format::kPaper, Format::kFloat32}) {
            if (format == Format::kPaper && !traits_of(rule).has_paper_order) continue;
            for (const auto weight : kDTypes) {
                for (const int bits : {0, 16, 24, 32}) {
                    if (weight == DType::kFloat32 && bits != 0) continue;
                    if (format == Format::kPaper && bits == 16) continue;
                    for (const auto gradient : kDTypes) {
                        OptimizerOptions options;
                        options.storage = {format, bits, true, 0, 0};
                        options.backend = backend;
                        options.threads = 1;
                        for (const auto& [shape_name, shape] : shapes()) {
                            auto key = std::string(rule_name) + " " + std::string(name_of(format)) + " " +
                                       std::string(name_of(weight)) + "+" + std::to_string(bits) + " " +
                                       std::string(name_of(gradient)) + " " + std::string(shape_name);
                            each(key, digest_of(rule, hyperparameters, options, weight, gradient, shape));
                        }
                    }
                }
            }
        }
    }
}

Backend backend_named(std::string_view name) {
    if (name == name_of(Backend::kAutomatic)) return Backend::kAutomatic;
    for (const auto backend : available_backends()) {
        if (name_of(backend) == name) return backend;
    }
    throw InvalidArgument("this processor has no backend " + std::string(name));
}

int check(const std::string& path, Backend backend) {
    std::map<std::string, std::string> expected;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        if (line.empty() || line.front() == '#') continue;
        const auto space = line.rfind(' ');
        expected[line.substr(0, space)] = line.substr(space + 1);
    }
    int faults = 0;
    const auto report = [&](const std::string& what) {
        if (++faults <= 20) std::cout << what << '\n';
    };
    if (expected.empty()) report(path + ": cannot be read, or holds no digest");
    for_each_case(backend, [&](const std::string& key, const std::string& digest) {
        const auto found = expected.find(key);
        if (found == expected.end()) return report(key + ": not in the file; its digest is " + digest);
        if (found->second != digest) report(key + ": " + digest + " instead of " + found->second);
        expected.erase(found);
    });
    for (const auto& [key, digest] : expected) report(key + ": in the file, but no case of this program");
    std::cout << (faults == 0 ? "every digest is that of the file" : std::to_string(faults) + " faults")
              << '\n';
    return faults == 0 ? 0 : 1;
}

}  // namespace

}  // namespace flashoptim

int main(int argc, char** argv) try {
    using namespace flashoptim;
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const bool checks = arguments.size() >= 2 && arguments[0] == "--check";
    const auto backend =
        arguments.size() > (checks ? 2U : 0U) ? backend_named(arguments.back()) : Backend::kAutomatic;
    if (checks) return check(arguments[1], backend);
    for_each_case(backend, [](const std::string& key, const std::string& digest) {
        std::cout << key << ' ' << digest << '\n';
    });
    return 0;
} catch (const std::exception& error) {
    std::cerr << "step_digests: " << error.what() << '\n';
    return 2;
}
