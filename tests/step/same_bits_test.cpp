// The promise of the same bits from every backend and any number of threads. If one of these fails, a run
// cannot be reproduced on another machine, and a bug report cannot be reproduced at all.
#include <algorithm>
#include <optional>

#include "../support/step_cases.h"

namespace flashoptim {

namespace {

/// A run over tensors of the given shapes; two runs differ in options only.
class SteppedRun {
public:
    SteppedRun(const RuleCase& rule, const StorageCase& storage, DType gradient,
               std::vector<std::vector<std::int64_t>> shapes, Backend backend, int threads)
        : optimizer_(rule.rule, rule.hyperparameters, options_of(storage, backend, threads)) {
        Noise noise(1);
        for (auto& shape : shapes) {
            weights_.emplace_back(storage.weight, shape).fill([&] { return noise.normal(); });
            gradients_.emplace_back(gradient, std::move(shape));
        }
        for (std::size_t n = 0; n < weights_.size(); ++n) {
            optimizer_.add_parameter(weights_[n].view());
            optimizer_.set_gradient(n, gradients_[n].view());
        }
    }
    std::vector<std::byte> bytes_after(int steps) {
        for (int t = 0; t < steps; ++t) {
            Noise noise(100 + static_cast<std::uint64_t>(t));
            for (auto& gradient : gradients_) {
                gradient.fill([&] { return noise.wide(); });
                if (gradient.numel() == 0) continue;
                // Bad elements take another path through the kernels.
                if (t == 1) gradient.set(gradient.numel() / 2, NAN);
                if (t == 2) gradient.set(gradient.numel() - 1, INFINITY);
            }
            optimizer_.step();
        }
        return bytes_of_numbers(optimizer_);
    }

private:
    static OptimizerOptions options_of(const StorageCase& storage, Backend backend, int threads) {
        OptimizerOptions options;
        options.storage = storage.options;
        options.backend = backend;
        options.threads = threads;
        return options;
    }
    Optimizer optimizer_;
    std::vector<Tensor> weights_, gradients_;
};

void expect_same_bits_from_every_backend(const RuleCase& rule, const StorageCase& storage, DType gradient,
                                         const std::vector<std::vector<std::int64_t>>& shapes, int steps) {
    const auto expected = SteppedRun(rule, storage, gradient, shapes, Backend::kScalar, 1).bytes_after(steps);
    for (const auto backend : available_backends()) {
        if (backend == Backend::kScalar) continue;
        EXPECT_TRUE(SteppedRun(rule, storage, gradient, shapes, backend, 1).bytes_after(steps) == expected)
            << rule.name << " " << storage.name << " gradients in " << name_of(gradient) << " on "
            << name_of(backend);
    }
}

class SameBitsOfEveryRule : public ::testing::TestWithParam<RuleCase> {};
INSTANTIATE_TEST_SUITE_P(Rules, SameBitsOfEveryRule, ::testing::ValuesIn(rule_cases()),
                         [](const auto& rule) { return rule.param.name; });

}  // namespace

TEST_P(SameBitsOfEveryRule, WithEveryStorageAndGradientOnEveryBackend) {
    for (const auto& storage : storage_cases(GetParam().rule)) {
        for (const auto gradient : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
            expect_same_bits_from_every_backend(GetParam(), storage, gradient, {{9, 67}, {640}}, 4);
        }
    }
}

// Short last groups, rows shorter than a vector and rows whose groups begin anywhere in the dither's period.
TEST_P(SameBitsOfEveryRule, WithEverySizeAndRowLengthUpTo70) {
    std::vector<std::vector<std::int64_t>> shapes;
    for (std::int64_t size = 1; size <= 70; ++size) {
        shapes.push_back({size});
        shapes.push_back({5, size});
    }
    shapes.push_back({});
    shapes.push_back({0, 7});
    const StorageOptions native{Format::kNative, 24, true, 0, 0}, paper{Format::kPaper, 24, true, 0, 0};
    expect_same_bits_from_every_backend(GetParam(), {"native", native, DType::kBFloat16}, DType::kBFloat16,
                                        shapes, 3);
    if (!traits_of(GetParam().rule).has_paper_order) return;
    expect_same_bits_from_every_backend(GetParam(), {"paper", paper, DType::kFloat16}, DType::kFloat32,
                                        shapes, 3);
}

// Rows longer than a chunk, many short rows in a chunk, a last chunk of one element.
TEST_P(SameBitsOfEveryRule, WithAnyNumberOfThreads) {
    const std::vector<std::vector<std::int64_t>> shapes = {{2, 40001}, {700, 67}, {65537}, {3}, {33, 992}};
    for (const auto& storage : storage_cases(GetParam().rule)) {
        if (storage.weight != DType::kBFloat16 || storage.options.master_weight_bits != 24) continue;
        const auto expected =
            SteppedRun(GetParam(), storage, DType::kBFloat16, shapes, Backend::kAutomatic, 1).bytes_after(3);
        for (const int threads : {2, 3, 8}) {
            EXPECT_TRUE(
                SteppedRun(GetParam(), storage, DType::kBFloat16, shapes, Backend::kAutomatic, threads)
                    .bytes_after(3) == expected)
                << GetParam().name << " " << storage.name << " with " << threads << " threads";
        }
    }
}

// Fast kernels hand blocks that are out of the ordinary to the reference; whatever can be in
// memory must be seen by them.
TEST_P(SameBitsOfEveryRule, WithWeightsAndScalarsOutOfTheOrdinary) {
    const std::vector<std::uint16_t> highs = {0x0000, 0x8000, 0x0001, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0,
                                              0x7eff, 0x7bff, 0x7c00, 0xfc00, 0x7800, 0x3c00, 0x0400};
    auto rule = GetParam();
    rule.hyperparameters.weight_decay = 3.0;  // a decay factor far below 1
    for (const double learning_rate : {0.0, 0.3, 1e30}) {
        rule.hyperparameters.learning_rate = learning_rate;
        for (const auto& storage : storage_cases(GetParam().rule)) {
            std::vector<std::byte> expected;
            for (const auto backend : available_backends()) {
                OptimizerOptions options;
                options.storage = storage.options;
                options.backend = backend;
                Optimizer optimizer(rule.rule, rule.hyperparameters, options);
                Tensor weight(storage.weight, {40, 96}), gradient(DType::kFloat32, {40, 96});
                Noise noise(3);
                weight.fill([&] { return noise.normal(); });
                optimizer.add_parameter(weight.view());
                optimizer.set_gradient(0, gradient.view());
                for (int t = 0; t < 3; ++t) {
                    gradient.fill([&] { return noise.normal(); });
                    // One thing in each of some rows, beside anything that a correction may be.
                    for (std::size_t n = 0; n < highs.size(); ++n) {
                        const auto at = n * 2 * 96 + 7 * n;
                        if (storage.weight == DType::kFloat32) {
                            weight.set_bits(at, std::uint32_t{highs[n]} << 16U);
                        } else {
                            weight.set_bits(at, highs[n]);
                        }
                        for (const auto& buffer : optimizer.state(0)) {
                            if (buffer.name == "error_bits") {
                                std::memset(buffer.bytes.data() + at * size_of(buffer.dtype),
                                            n % 2 == 0 ? 0xff : 0x7f, size_of(buffer.dtype));
                            }
                        }
                    }
                    gradient.set(95, 0x1p47F);
                    gradient.set(32 * 96, 0x1.fffffep47F);
                    gradient.set(33 * 96, 0x1p48F);
                    gradient.set(34 * 96, -INFINITY);
                    gradient.set(35 * 96, 1e-42F);
                    optimizer.step();
                }
                auto bytes = bytes_of(optimizer);
                if (backend == Backend::kScalar) expected = bytes;
                EXPECT_TRUE(bytes == expected) << rule.name << " " << storage.name << " at rate "
                                               << learning_rate << " on " << name_of(backend);
            }
        }
    }
}

TEST(SameBits, ParametersSteppedOneByOneOrTogether) {
    const auto rule = rule_cases()[4];
    std::vector<std::vector<std::byte>> results;
    for (const bool together : {true, false}) {
        std::vector<Tensor> weights, gradients;
        Optimizer optimizer(rule.rule, rule.hyperparameters);
        Noise noise(5);
        for (int n = 0; n < 3; ++n) {
            weights.emplace_back(DType::kBFloat16, std::vector<std::int64_t>{70, 64}).fill([&] {
                return noise.normal();
            });
            gradients.emplace_back(DType::kBFloat16, std::vector<std::int64_t>{70, 64}).fill([&] {
                return noise.wide();
            });
        }
        for (std::size_t n = 0; n < 3; ++n) {
            optimizer.add_parameter(weights[n].view());
            optimizer.set_gradient(n, gradients[n].view());
        }
        for (int t = 0; t < 3; ++t) {
            if (together) optimizer.step();
            for (std::size_t n = 3; !together && n-- > 0;) optimizer.step_parameter(n);
        }
        results.push_back(bytes_of_numbers(optimizer));
    }
    EXPECT_TRUE(results[0] == results[1]) << "gradient release computes something else than step()";
}

}  // namespace flashoptim
