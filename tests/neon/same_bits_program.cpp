// A program for processors that this machine only emulates: every rule, format and dtype on the
// fastest backend against the scalar one. Prints what differs; exits with 0 where nothing does.
// Needs nothing but the core.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "flashoptim/flashoptim.h"

namespace {

using namespace flashoptim;

bool has_nan(const std::vector<float>& values) {
    bool found = false;
    for (const float value : values) found = found || std::isnan(value);
    return found;
}

/// Bytes of weights and state after three steps over gradients of many magnitudes, some of them bad.
std::vector<std::byte> run(Rule rule, const StorageOptions& storage, DType weight_dtype, DType gradient_dtype,
                           Backend backend) {
    OptimizerOptions options;
    options.storage = storage;
    options.backend = backend;
    options.threads = 1;
    Hyperparameters h;
    h.weight_decay = 0.1;
    h.momentum = 0.9;
    h.learning_rate = 0.01;
    Optimizer optimizer(rule, h, options);
    const std::vector<std::int64_t> shape = {9, 203};
    constexpr std::size_t kCount = 9 * 203;
    std::uint32_t state = 1;
    const auto next = [&] {
        return static_cast<float>(static_cast<std::int32_t>(state = state * 1664525U + 1013904223U));
    };
    std::vector<float> values(kCount);
    std::vector<std::byte> weight(kCount * size_of(weight_dtype)), gradient(kCount * size_of(gradient_dtype));
    for (auto& value : values) value = next() * 0x1p-31F;
    optimizer.add_parameter({weight.data(), weight_dtype, shape});
    optimizer.set_master(0, values);
    StoragePlan plain;
    plain.weight_dtype = gradient_dtype;
    for (int t = 0; t < 3; ++t) {
        for (auto& value : values) value = next() * std::ldexp(1.0F, static_cast<int>(state >> 27U) - 50);
        split_weights(plain, values, gradient.data(), nullptr);
        if (t == 1)
            std::memset(gradient.data() + 100 * size_of(gradient_dtype), 0xff, size_of(gradient_dtype));
        optimizer.set_gradient(0, {gradient.data(), gradient_dtype, shape});
        optimizer.step();
    }
    // Two backends that both give a NaN have the same bits, and are wrong. An
    // empty result is that of no case.
    if (has_nan(optimizer.master(0))) return {};
    for (std::size_t n = 0; n < traits_of(rule).moments.size(); ++n) {
        if (has_nan(optimizer.moment(0, static_cast<int>(n)))) return {};
    }
    for (const auto& tensor : optimizer.state(0))
        weight.insert(weight.end(), tensor.bytes.begin(), tensor.bytes.end());
    return weight;
}

}  // namespace

int main() {
    const auto fastest = available_backends().back();
    std::printf("%s against scalar\n", std::string(name_of(fastest)).c_str());
    int cases = 0, faults = 0;
    for (const auto rule : {Rule::kSGD, Rule::kAdam, Rule::kAdamW, Rule::kLion}) {
        for (const auto format : {Format::kNative, Format::kPaper, Format::kFloat32}) {
            for (const auto weight : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
                for (const int bits : {0, 16, 24, 32}) {
                    if ((format == Format::kPaper && bits == 16) || (weight == DType::kFloat32 && bits != 24))
                        continue;
                    for (const auto gradient : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
                        const StorageOptions storage{format, bits, true, 0, 0};
                        ++cases;
                        const auto found = run(rule, storage, weight, gradient, fastest);
                        if (!found.empty() &&
                            found == run(rule, storage, weight, gradient, Backend::kScalar)) {
                            continue;
                        }
                        ++faults;
                        std::printf("differs or holds a NaN: %s, %s, %s weights, %d bits, %s gradients\n",
                                    std::string(name_of(rule)).c_str(), std::string(name_of(format)).c_str(),
                                    std::string(name_of(weight)).c_str(), bits,
                                    std::string(name_of(gradient)).c_str());
                    }
                }
            }
        }
    }
    std::printf("%d cases, %d differ\n", cases, faults);
    return faults == 0 ? 0 : 1;
}
