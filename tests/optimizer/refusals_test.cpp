// Arguments that can never work are refused by the call that takes them. If one of these fails, a mistake
// shows in a later step: as a crash, or as weights that are quietly wrong.
#include <array>
#include <limits>
#include <span>
#include <utility>

#include "../support/step_cases.h"

namespace flashoptim {

namespace {

constexpr auto kLongest = std::numeric_limits<std::int64_t>::max();

/// Where 16 elements of a gradient lie, counted in elements from the begin of a buffer whose elements 16 to
/// 31 and 40 to 47 are weights.
struct Place {
    std::string name;
    std::int64_t at;
    std::vector<std::int64_t> strides;
    bool is_apart;
};
std::vector<Place> places() {
    return {{"the weight itself", 16, {4, 1}, false},
            {"the weight in another order", 16, {1, 4}, false},
            {"its first element", 1, {4, 1}, false},
            {"its last element", 31, {4, 1}, false},
            {"all of it and more", 14, {6, 1}, false},
            {"one element of it, expanded", 20, {0, 0}, false},
            {"another parameter's weight", 32, {4, 1}, false},
            {"the last of another parameter's weight", 47, {4, 1}, false},
            {"backwards into it", 47, {-4, -1}, false},
            {"just before it", 0, {4, 1}, true},
            {"just behind both", 48, {4, 1}, true},
            {"around it, in the holes of a gradient", 12, {-4, 1}, true},
            {"on both sides of it", 12, {20, 1}, true},
            {"one element before, expanded", 15, {0, 0}, true}};
}

}  // namespace

TEST(Refusals, AGradientInTheMemoryOfAWeight) {
    for (const auto& place : places()) {
        for (const bool weights_first : {true, false}) {
            std::vector<float> buffer(80, 1.0F);
            const auto tensor = [&](std::int64_t at, std::vector<std::int64_t> shape) {
                return TensorView{buffer.data() + at, DType::kFloat32, std::move(shape), {}};
            };
            SGD optimizer;
            std::vector<float> elsewhere(16);
            TensorView gradient = tensor(place.at, {4, 4});
            gradient.strides = place.strides;
            const auto use = [&](auto action, const char* part) {
                if (place.is_apart) return action();
                expect_refused<InvalidArgument>(part, action);
            };
            SCOPED_TRACE(place.name + (weights_first ? "" : ", weights added behind it"));
            if (weights_first) {
                optimizer.add_parameter(tensor(16, {4, 4}), "first");
                optimizer.add_parameter(tensor(40, {8}), "second");
                use([&] { optimizer.set_gradient(0, gradient); },
                    "the gradient of first lies in the memory of the weight");
            } else {
                optimizer.add_parameter({elsewhere.data(), DType::kFloat32, {4, 4}, {}}, "elsewhere");
                optimizer.set_gradient(0, gradient);
                use(
                    [&] {
                        optimizer.add_parameter(tensor(16, {4, 4}), "first");
                        optimizer.add_parameter(tensor(40, {8}), "second");
                    },
                    "lies in the memory of the gradient of elsewhere");
                optimizer.clear_gradient(0);
                if (optimizer.parameter_count() == 1) optimizer.add_parameter(tensor(16, {4, 4}), "first");
                EXPECT_GE(optimizer.parameter_count(), 2U) << "a cleared gradient is in nobody's way";
            }
            optimizer.step();
        }
    }
}

// What no parameter could be added with is refused before there is an optimizer.
TEST(Refusals, ARuleThatTheFormatOrTheLibraryLacks) {
    for (const auto& traits : kRules) {
        for (const auto format : {Format::kNative, Format::kPaper, Format::kFloat32}) {
            SCOPED_TRACE(std::string(traits.name) + " " + std::to_string(static_cast<int>(format)));
            OptimizerOptions options;
            options.storage.format = format;
            const auto make = [&] {
                (void)Optimizer(traits.rule, default_hyperparameters(traits.rule), options);
            };
            if (format != Format::kPaper || traits.has_paper_order) {
                make();
            } else {
                expect_refused<InvalidArgument>("is not a rule of the paper's format: choose native or fp32",
                                                make);
            }
        }
    }
    for (const auto none : {static_cast<int>(kRuleCount), 255}) {
        expect_refused<InvalidArgument>("use an enumerator of the header",
                                        [&] { (void)Optimizer(static_cast<Rule>(none), {}, {}); });
    }
}

// The place of a gradient may change with each step, and the former one is free then.
TEST(Refusals, AFormerGradientIsInNobodysWay) {
    std::vector<float> buffer(12), weight(4);
    SGD optimizer;
    optimizer.add_parameter({weight.data(), DType::kFloat32, {4}, {}});
    for (const std::size_t at : {0U, 4U, 2U, 8U}) {
        optimizer.set_gradient(0, {buffer.data() + at, DType::kFloat32, {4}, {}});
    }
    optimizer.add_parameter({buffer.data(), DType::kFloat32, {8}, {}});
    expect_refused<InvalidArgument>(
        "gradient", [&] { optimizer.add_parameter({buffer.data() + 8, DType::kFloat32, {4}, {}}); });
}

// Codes that become values in the memory where they lie are overwritten before they are read.
TEST(Refusals, FormatsFromAndToTheSameMemory) {
    constexpr std::int64_t kCount = 64;
    alignas(64) static std::array<std::byte, 1024> memory{};
    struct Part {
        std::string_view name;
        std::size_t at, bytes;
    };
    const auto floats = [](const Part& p) {
        return std::span(reinterpret_cast<float*>(&memory.at(p.at)), p.bytes / sizeof(float));
    };
    const auto halves = [](const Part& p) {
        return std::span(reinterpret_cast<std::uint16_t*>(&memory.at(p.at)), p.bytes / 2);
    };
    const auto bytes = [](const Part& p) { return std::span(&memory.at(p.at), p.bytes); };
    // Calls use(a, b, c) with parts that lie apart, then with each pair of them overlapping by
    // least, by most and in between.
    const auto walk = [&](std::array<Part, 3> parts, auto use, bool is_third_of_second) {
        for (std::size_t n = 0; n < 3; ++n) parts[n].at = 256 * (n + (n > 0 ? 1 : 0));
        use(parts[0], parts[1], parts[2]);
        for (const auto& [moved, onto] : {std::pair{1, 0}, {2, 0}, {2, 1}}) {
            if (onto == 1 && !is_third_of_second) continue;
            const auto& fixed = parts.at(static_cast<std::size_t>(onto));
            for (const auto at : {fixed.at, fixed.at + fixed.bytes / 2, fixed.at + fixed.bytes - 4}) {
                auto with = parts;
                with.at(static_cast<std::size_t>(moved)).at = at;
                expect_refused<InvalidArgument>("lie in the same memory",
                                                [&] { use(with[0], with[1], with[2]); });
            }
        }
    };
    const auto layout = layout_of({nullptr, DType::kFloat32, {kCount}, {}});
    for (const auto storage : {MomentStorage::kNative, MomentStorage::kPaper}) {
        const std::array<Part, 3> parts{{{"values", 0, 4 * kCount}, {"codes", 0, kCount}, {"scales", 0, 4}}};
        walk(
            parts,
            [&](auto& values, auto& codes, auto& scales) {
                quantize_moment(MomentKind::kSigned, storage, layout, floats(values), bytes(codes),
                                halves(scales));
            },
            true);
        walk(
            parts,
            [&](auto& values, auto& codes, auto& scales) {
                dequantize_moment(MomentKind::kSigned, storage, layout, bytes(codes), halves(scales),
                                  floats(values));
            },
            false);
    }
    for (const auto format : {Format::kNative, Format::kPaper}) {
        for (const int bits : {24, 32}) {
            const StorageOptions options{.format = format, .master_weight_bits = bits};
            const auto plan = plan_storage(Rule::kSGD, {}, options, DType::kBFloat16, layout);
            const std::array<Part, 3> parts{{{"masters", 0, 4 * kCount},
                                             {"weights", 0, 2 * kCount},
                                             {"corrections", 0, plan.correction().bytes()}}};
            walk(
                parts,
                [&](auto& masters, auto& weights, auto& corrections) {
                    split_weights(plan, floats(masters), bytes(weights).data(), bytes(corrections).data());
                },
                true);
            walk(
                parts,
                [&](auto& masters, auto& weights, auto& corrections) {
                    join_weights(plan, bytes(weights).data(), bytes(corrections).data(), floats(masters));
                },
                false);
        }
    }
}

TEST(Refusals, StridesThatLeaveTheAddressSpace) {
    std::vector<float> weight(16), gradient(16);
    SGD optimizer;
    optimizer.add_parameter({weight.data(), DType::kFloat32, {4, 4}, {}}, "layer.weight");
    for (const auto& strides : std::vector<std::vector<std::int64_t>>{{kLongest, 1},
                                                                      {1, kLongest},
                                                                      {kLongest, kLongest},
                                                                      {-kLongest - 1, 1},
                                                                      {-kLongest, -kLongest},
                                                                      {kLongest / 3, 1},
                                                                      {kLongest / 12, 1},
                                                                      {-kLongest / 12, 1}}) {
        expect_refused<InvalidArgument>("layer.weight reaches out of the address space", [&] {
            optimizer.set_gradient(0, {gradient.data(), DType::kFloat32, {4, 4}, strides});
        });
        expect_refused<InvalidArgument>(
            "w", [&] { optimizer.add_parameter({gradient.data(), DType::kFloat32, {4, 4}, strides}, "w"); });
    }
    EXPECT_EQ(optimizer.parameter_count(), 1U);
}

TEST(Refusals, OptionsThatNoOptimizerCanHave) {
    const std::vector<std::pair<std::string, void (*)(OptimizerOptions&)>> faults = {
        {"threads is -1", [](auto& o) { o.threads = -1; }},
        {"threads is -2147483648", [](auto& o) { o.threads = std::numeric_limits<int>::min(); }},
        {"min_quantized_numel is -1", [](auto& o) { o.storage.min_quantized_numel = -1; }},
        {"min_quantized_numel_1d is -1", [](auto& o) { o.storage.min_quantized_numel_1d = -1; }},
        {"master_weight_bits is 20", [](auto& o) { o.storage.master_weight_bits = 20; }},
        {"master_weight_bits is -1", [](auto& o) { o.storage.master_weight_bits = -1; }},
        {"format is 3", [](auto& o) { o.storage.format = static_cast<Format>(3); }},
        {"nonfinite is 3", [](auto& o) { o.nonfinite = static_cast<NonFinite>(3); }},
        {"backend is 7", [](auto& o) { o.backend = static_cast<Backend>(7); }}};
    for (const auto& [message, spoil] : faults) {
        OptimizerOptions options;
        spoil(options);
        expect_refused<InvalidArgument>(message, [&] { AdamW({}, options); });
    }
}

// Nothing is lost under a name that is misspelt, also where there are no bytes.
TEST(Refusals, ABufferThatNoParameterHas) {
    Tensor weight(DType::kFloat32, {64});
    AdamW optimizer;
    optimizer.add_parameter(weight.view());
    const auto groups = std::vector{optimizer.hyperparameters()};
    for (const std::string name : {"", "exp_avg_", "momentum_buffer"}) {
        expect_refused<InvalidArgument>("no buffer that is called " + name,
                                        [&] { optimizer.set_stored(0, name, {}); });
        const std::vector<SavedState> states{{.parameter = 0, .buffers = {{name, {}}}}};
        expect_refused<InvalidArgument>("no buffer that is called " + name,
                                        [&] { optimizer.restore(groups, states); });
    }
    EXPECT_NO_THROW(optimizer.set_stored(0, "error_bits", {}));  // fp32 weights have none
}

TEST(Refusals, AWeightOfNoDType) {
    Tensor weight(DType::kFloat32, {64});
    AdamW optimizer;
    for (const int dtype : {6, 77, 255}) {
        TensorView view = weight.view();
        view.dtype = static_cast<DType>(dtype);
        expect_refused<InvalidArgument>("weights must be float32, bfloat16 or float16",
                                        [&] { optimizer.add_parameter(view); });
    }
}

TEST(Refusals, AGradientFactorThatIsNoFloat) {
    SGD optimizer;
    const double infinity = std::numeric_limits<double>::infinity();
    for (const double factor : {infinity, -infinity, std::nan(""), 1e39, -1e39, 1e308}) {
        expect_refused<InvalidArgument>("gradient_factor", [&] { optimizer.set_gradient_factor(factor); });
    }
    optimizer.set_gradient_factor(std::numeric_limits<float>::max());
}

}  // namespace flashoptim
