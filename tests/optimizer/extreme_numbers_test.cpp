// Counts, shapes, strides and addresses at their ends. If these fail, a hostile file or a slip of a caller is
// undefined behaviour instead of an error that names it.
#include <functional>
#include <limits>

#include "../support/step_cases.h"
#include "flashoptim/quantize.h"

namespace flashoptim {

namespace {

using Extents = std::vector<std::int64_t>;
constexpr auto kMost = std::numeric_limits<std::int64_t>::max(),
               kLeast = std::numeric_limits<std::int64_t>::min();

/// One weight that trains.
struct Training {
    explicit Training(NonFinite policy = NonFinite::kSkipElement) : optimizer({}, with(policy)) {
        gradient.fill([] { return 1.0F; });
        optimizer.add_parameter(weight.view(), "w");
        optimizer.set_gradient(0, gradient.view());
    }
    static OptimizerOptions with(NonFinite policy) {
        OptimizerOptions options;
        options.nonfinite = policy;
        return options;
    }
    Tensor weight{DType::kBFloat16, {3, 40}}, gradient{DType::kBFloat16, {3, 40}};
    AdamW optimizer;
};

/// Memory whose elements can be placed anywhere.
struct Odd {
    std::vector<std::byte> memory = std::vector<std::byte>(1 << 12);
    void* at(std::size_t offset) {
        const auto misaligned = reinterpret_cast<std::uintptr_t>(memory.data()) % 64;
        return memory.data() + (64 - misaligned) + offset;
    }
};

}  // namespace

TEST(ExtremeNumbers, TheLastStepThatCanBeCounted) {
    for (const auto policy : {NonFinite::kSkipElement, NonFinite::kSkipStep, NonFinite::kError}) {
        Training t(policy);
        t.optimizer.set_step_count(0, kMost - 1);
        t.optimizer.step();
        EXPECT_EQ(t.optimizer.step_count(0), kMost);
        const auto before = bytes_of(t.optimizer);
        expect_refused<InvalidArgument>("w has made 9223372036854775807 steps", [&] { t.optimizer.step(); });
        expect_refused<InvalidArgument>("set_step_count", [&] { t.optimizer.step_parameter(0); });
        EXPECT_GT(t.optimizer.grad_norm(), 0.0);
        EXPECT_TRUE(before == bytes_of(t.optimizer));
        EXPECT_EQ(t.optimizer.step_count(0), kMost);
        t.optimizer.set_step_count(0, 4);
        t.optimizer.step();
        EXPECT_EQ(t.optimizer.step_count(0), 5);
    }
}

TEST(ExtremeNumbers, StepCounts) {
    for (const std::int64_t steps :
         {std::int64_t{0}, std::int64_t{1}, std::int64_t{1} << 31, std::int64_t{1} << 32,
          std::int64_t{1} << 53, kMost / 2, kMost / 2 + 1, kMost - 2}) {
        Training t;
        t.optimizer.set_step_count(0, steps);
        t.optimizer.step();
        EXPECT_EQ(t.optimizer.step_count(0), steps + 1);
        for (const float w : t.optimizer.master(0)) EXPECT_TRUE(std::isfinite(w));
    }
    Training t;
    for (const std::int64_t steps : {std::int64_t{-1}, kLeast}) {
        expect_refused<InvalidArgument>("must not be negative",
                                        [&] { t.optimizer.set_step_count(0, steps); });
    }
}

TEST(ExtremeNumbers, Shapes) {
    AdamW optimizer;
    Odd odd;
    for (const auto& shape : {Extents{kMost}, Extents{kMost, kMost}, Extents{kMost, 2}, Extents{2, kMost},
                              Extents{std::int64_t{1} << 62}, Extents{(std::int64_t{1} << 60) + 1},
                              Extents{0, kMost}, Extents{kMost, 0}, Extents{0, kMost, kMost}, Extents{-1},
                              Extents{kLeast}, Extents{kLeast, kLeast}, Extents{0, -1}, Extents{4, -4}}) {
        const TensorView view{odd.at(0), DType::kFloat32, shape};
        expect_refused<InvalidArgument>("of shape", [&] { optimizer.add_parameter(view); });
        expect_refused<InvalidArgument>("of shape", [&] { (void)layout_of(view); });
        expect_refused<InvalidArgument>("of shape", [&] {
            (void)layout_of({odd.at(0), DType::kFloat32, Extents(shape.size(), 1)},
                            Shard{shape, {}, Extents(shape.size(), 0)});
        });
    }
    EXPECT_EQ(optimizer.parameter_count(), 0U);
    EXPECT_EQ(optimizer.add_parameter({nullptr, DType::kBFloat16, {0, 1 << 20}}), 0U);
}

// A tensor that is not there is laid out and planned without touching it.
TEST(ExtremeNumbers, TheLargestTensor) {
    const auto largest = std::int64_t{1} << 60;
    for (const auto& shape :
         {Extents{largest}, Extents{1 << 30, 1 << 30}, Extents{largest, 1}, Extents{1, largest}}) {
        const TensorView view{nullptr, DType::kFloat32, shape};
        const auto layout = layout_of(view);
        EXPECT_EQ(layout.numel, largest);
        for (const auto format : {Format::kNative, Format::kPaper, Format::kFloat32}) {
            const auto plan =
                plan_storage(Rule::kAdamW, {}, {format, 32, true, 0, 0}, DType::kBFloat16, layout);
            EXPECT_GE(plan.codes(0).bytes(), std::size_t{1} << 60);
            std::vector<float> none;
            std::vector<std::uint16_t> no_scales;
            expect_refused<InvalidArgument>(
                "", [&] { quantize_moment(MomentKind::kSigned, plan.moments, layout, none, {}, no_scales); });
        }
        AdamW optimizer;
        Odd odd;
        try {
            optimizer.add_parameter({odd.at(0), DType::kFloat32, shape});
            ADD_FAILURE() << "there is no such memory";
        } catch (const std::bad_alloc&) {
            EXPECT_EQ(optimizer.parameter_count(), 0U);
        }
    }
}

TEST(ExtremeNumbers, Strides) {
    Training t;
    AdamW optimizer;
    Odd odd;
    for (const auto& strides : {Extents{kMost, 1}, Extents{1, kMost}, Extents{kMost, kMost},
                                Extents{kLeast, 1}, Extents{40, kLeast}, Extents{kMost / 2, kMost / 2},
                                Extents{kMost / 4, 1}, Extents{-kMost, kMost}}) {
        expect_refused<InvalidArgument>(
            "is not dense", [&] { optimizer.add_parameter({odd.at(0), DType::kFloat32, {3, 40}, strides}); });
        expect_refused<InvalidArgument>("reaches out of the address space", [&] {
            t.optimizer.set_gradient(0, {t.gradient.view().data, DType::kBFloat16, {3, 40}, strides});
        });
    }
    t.optimizer.step();  // with the gradient that it had
    EXPECT_LT(t.weight.get(0), 0.0F);
    // Strides of dimensions of extent 1 say nothing, and those of a gradient may lead backwards.
    Tensor row(DType::kFloat32, {1, 5}), values(DType::kFloat32, {5});
    for (std::size_t n = 0; n < 5; ++n) values.set(n, static_cast<float>(n));
    const auto backwards = values.view();
    SGD sgd({.learning_rate = 1.0});
    sgd.add_parameter(row.view());
    sgd.set_gradient(0,
                     {static_cast<std::byte*>(backwards.data) + 16, DType::kFloat32, {1, 5}, {kLeast, -1}});
    sgd.step();
    EXPECT_EQ(row.values(), (std::vector<float>{-4, -3, -2, -1, 0}));
}

TEST(ExtremeNumbers, Shards) {
    for (const auto& [whole, offset] : std::vector<std::pair<Extents, Extents>>{{{3, 40}, {1, 0}},
                                                                                {{3, 40}, {0, kMost}},
                                                                                {{3, 40}, {kLeast, 0}},
                                                                                {{3, 40}, {-1, 0}},
                                                                                {{2, 40}, {0, 0}},
                                                                                {{kLeast, 40}, {0, 0}},
                                                                                {{-3, 40}, {0, 0}},
                                                                                {{kMost, 40}, {0, 0}},
                                                                                {{kMost, 40}, {kMost, 0}},
                                                                                {{3}, {0}},
                                                                                {{3, 40, 1}, {0, 0, 0}},
                                                                                {{}, {}}}) {
        expect_refused<InvalidArgument>("part", [&] {
            (void)layout_of({nullptr, DType::kBFloat16, {3, 40}}, Shard{whole, {}, offset}, "part");
        });
    }
    const auto far = std::int64_t{1} << 54;
    const auto layout =
        layout_of({nullptr, DType::kBFloat16, {3, 40}}, Shard{{far, 40}, {}, {far - 3, 0}}, "the last rows");
    EXPECT_EQ(layout.row_offset, far - 3);
}

TEST(ExtremeNumbers, OddAddresses) {
    Odd odd, gradients;
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        for (std::size_t offset = 0; offset < 8; ++offset) {
            AdamW optimizer;
            const TensorView weight{odd.at(offset), dtype, {4, 33}},
                gradient{gradients.at(offset), dtype, {4, 33}};
            Tensor aligned(dtype, {4, 33});
            if (offset % size_of(dtype) != 0) {
                expect_refused<InvalidArgument>("w lies at an address",
                                                [&] { optimizer.add_parameter(weight, "w"); });
                const auto id = optimizer.add_parameter(aligned.view(), "w");
                expect_refused<InvalidArgument>("the gradient of w lies at an address",
                                                [&] { optimizer.set_gradient(id, gradient); });
                continue;
            }
            const auto id = optimizer.add_parameter(weight, "w");  // aligned to an element is enough
            optimizer.set_gradient(id, gradient);
            optimizer.step();
            EXPECT_EQ(optimizer.step_count(id), 1);
        }
    }
    AdamW optimizer;
    const auto* const number = static_cast<const float*>(odd.at(2));
    expect_refused<InvalidArgument>("found_inf lies at an address", [&] { optimizer.set_found_inf(number); });
    expect_refused<InvalidArgument>("the grad scale lies at an address",
                                    [&] { optimizer.set_grad_scale(number); });
}

TEST(ExtremeNumbers, ItemsOfAStep) {
    Tensor weight(DType::kBFloat16, {4, 32}), gradient(DType::kBFloat16, {4, 32});
    const auto layout = layout_of(weight.view());
    const auto plan =
        plan_storage(Rule::kAdamW, {}, {Format::kNative, 32, true, 0, 0}, DType::kBFloat16, layout);
    Odd memory;
    StepItem good;
    good.layout = &layout;
    good.plan = plan;
    good.weight = weight.view().data;
    good.state = {memory.at(0), memory.at(512), memory.at(1024), memory.at(1536), memory.at(2048)};
    good.gradient = gradient.view().data;
    good.gradient_dtype = DType::kBFloat16;
    good.step = kMost;
    ThreadPool pool(1);
    EXPECT_EQ(step({&good, 1}, pool), 0U);
    const auto odd = [](auto* data) { return static_cast<std::byte*>(const_cast<void*>(data)) + 1; };
    const std::vector<std::pair<std::string, std::function<void(StepItem&)>>> wrong = {
        {"no layout", [](auto& i) { i.layout = nullptr; }},
        {"step count 0", [](auto& i) { i.step = 0; }},
        {"step count -9223372036854775808", [](auto& i) { i.step = kLeast; }},
        {"weight is null", [](auto& i) { i.weight = nullptr; }},
        {"gradient is null", [](auto& i) { i.gradient = nullptr; }},
        {"correction is null", [](auto& i) { i.state.at(kCorrectionPlace) = nullptr; }},
        {"its exp_avg is null", [](auto& i) { i.state.at(codes_place(0)) = nullptr; }},
        {"its exp_avg_scales is null", [](auto& i) { i.state.at(scales_place(0)) = nullptr; }},
        {"its exp_avg_sq is null", [](auto& i) { i.state.at(codes_place(1)) = nullptr; }},
        {"its exp_avg_sq_scales is null", [](auto& i) { i.state.at(scales_place(1)) = nullptr; }},
        {"the weight of tensor 1 lies at", [&](auto& i) { i.weight = odd(i.weight); }},
        {"the gradient of tensor 1 lies at", [&](auto& i) { i.gradient = odd(i.gradient); }},
        {"the correction of tensor 1 lies at",
         [&](auto& i) { i.state.at(kCorrectionPlace) = odd(i.state.at(kCorrectionPlace)); }},
        {"scales of tensor 1 lies at",
         [&](auto& i) { i.state.at(scales_place(0)) = odd(i.state.at(scales_place(0))); }},
        {"its gradient is int8", [](auto& i) { i.gradient_dtype = DType::kInt8; }},
        {"its weight is uint8", [](auto& i) { i.plan.weight_dtype = DType::kUInt8; }},
    };
    const std::vector<std::function<void(StepItem&)>> of_another_rule = {
        [](auto& i) { i.rule = Rule::kSGD; }, [](auto& i) { i.rule = Rule::kLion; },
        [](auto& i) { i.rule = static_cast<Rule>(50); },
        [](auto& i) { i.plan.at(codes_place(0)) = i.plan.at(scales_place(0)) = {}; },
        [](auto& i) { i.plan.at(codes_place(1)) = i.plan.at(scales_place(1)) = {}; }};
    const auto before = weight.bytes();
    for (const auto& change : of_another_rule) {
        std::vector<StepItem> items{good, good};
        change(items[1]);
        expect_refused<InvalidArgument>("tensor 1 has a plan that is not of its rule",
                                        [&] { step(items, pool); });
        EXPECT_TRUE(before == weight.bytes());
    }
    for (const auto& [message, change] : wrong) {
        std::vector<StepItem> items{good, good};
        change(items[1]);
        expect_refused<InvalidArgument>(message, [&] { step(items, pool); });
        expect_refused<InvalidArgument>(message, [&] { count_bad_gradients(items, pool); });
        EXPECT_TRUE(before == weight.bytes()) << message;
    }
}

TEST(ExtremeNumbers, OptionsOutOfTheirRange) {
    const auto with = [](auto change) {
        OptimizerOptions options;
        change(options);
        Tensor weight(DType::kBFloat16, {4, 32});
        AdamW optimizer({}, options);
        optimizer.add_parameter(weight.view());
    };
    expect_refused<InvalidArgument>("threads is -1", [&] { with([](auto& o) { o.threads = -1; }); });
    expect_refused<InvalidArgument>("min_quantized_numel",
                                    [&] { with([](auto& o) { o.storage.min_quantized_numel = -1; }); });
    expect_refused<InvalidArgument>(
        "min_quantized_numel", [&] { with([](auto& o) { o.storage.min_quantized_numel_1d = kLeast; }); });
    expect_refused<InvalidArgument>("master_weight_bits",
                                    [&] { with([](auto& o) { o.storage.master_weight_bits = 1 << 30; }); });
    expect_refused<InvalidArgument>("nonfinite",
                                    [&] { with([](auto& o) { o.nonfinite = static_cast<NonFinite>(9); }); });
    expect_refused<InvalidArgument>("rule 77", [&] { Optimizer(static_cast<Rule>(77), {}); });
}

// Gradients that lie in a weight are changed by the step that reads them.
TEST(ExtremeNumbers, GradientsInTheMemoryOfAWeightAreRefused) {
    Odd odd;
    AdamW optimizer;
    const TensorView a{odd.at(0), DType::kBFloat16, {4, 32}}, b{odd.at(256), DType::kBFloat16, {4, 32}};
    optimizer.add_parameter(a, "a");
    optimizer.add_parameter(b, "b");
    expect_refused<InvalidArgument>("the memory of the weight a", [&] { optimizer.set_gradient(0, a); });
    expect_refused<InvalidArgument>("the memory of the weight b", [&] { optimizer.set_gradient(0, b); });
    for (const std::size_t offset : {2, 254, 510}) {
        expect_refused<InvalidArgument>("give it memory of its own", [&] {
            optimizer.set_gradient(1, {odd.at(offset), DType::kBFloat16, {4, 32}});
        });
    }
    optimizer.set_gradient(1, {odd.at(512), DType::kBFloat16, {4, 32}});
    optimizer.step();
    EXPECT_EQ(optimizer.step_count(1), 1);
}

}  // namespace flashoptim
