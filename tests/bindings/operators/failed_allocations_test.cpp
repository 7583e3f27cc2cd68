// Memory that ends in the middle of an operator, of the host or of a GPU (emulated). If these fail, a Python
// program that catches MemoryError or RuntimeError goes on with weights, moments and counts that do not
// belong together. (Who still holds a tensor is not asked: where memory ends while torch makes handles of an
// operator's arguments, torch leaves those behind that it has made.)
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "failing_allocations.h"
#include "flashoptim/libtorch_headers.h"
#include "flashoptim/rule/rules.h"

extern const char* const kOperatorsLibrary;

namespace flashoptim {
namespace {

using Values = std::vector<c10::IValue>;
using Tensors = std::vector<torch::Tensor>;

void* library() {
    static void* const kLibrary = ::dlopen(kOperatorsLibrary, RTLD_NOW);
    if (kLibrary == nullptr) throw std::runtime_error(::dlerror());
    return kLibrary;
}

/// Whether the library's kernels stand for a GPU's.
bool is_emulated() { return ::dlsym(library(), "flashoptim_emulated_fail") != nullptr; }

Values call(const std::string& name, Values arguments) {
    library();
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(("flashoptim_cpp::" + name).c_str(), "");
    op.callBoxed(arguments);
    return arguments;
}

testing::AssertionResult is_any_error(const std::exception_ptr& /*error*/) {
    return testing::AssertionSuccess();  // torch's are passed on
}

torch::Tensor row(const std::vector<std::int64_t>& values) { return torch::tensor(values, torch::kInt64); }

/// The arguments of an AdamW step of three tensors with 24-bit masters, and what an act gave.
struct Call {
    Call() {
        const auto options = [](torch::Dtype dtype) { return torch::dtype(dtype); };
        weights = {torch::full({8, 40}, 1.0, options(torch::kBFloat16)),
                   torch::full({70}, 0.5, options(torch::kFloat16)), torch::ones({3, 4})};
        hyperparameters =
            torch::zeros({1, static_cast<std::int64_t>(kHyperparameterFields.size())}, torch::kFloat64);
        const auto defaults = default_hyperparameters(Rule::kAdamW);
        for (std::size_t n = 0; n < kHyperparameterFields.size(); ++n) {
            hyperparameters[0][static_cast<std::int64_t>(n)] = kHyperparameterFields[n].of(defaults);
        }
        for (const auto& w : weights) {
            gradients.push_back(torch::full_like(w, 0.01));
            const auto sizes = w.sizes().vec(), strides = w.strides().vec();
            const std::vector<std::int64_t> offset(sizes.size(), 0);
            const auto layout = call("layout", {sizes, strides, sizes, strides, offset})[0].toTensor();
            const std::int64_t dtype = w.dtype() == torch::kFloat32    ? 0
                                       : w.dtype() == torch::kBFloat16 ? 1
                                                                       : 2;
            const auto plan =
                call("plan", {layout, 3, hyperparameters, 0, 24, true, 0, 0, dtype})[0].toTensor();
            const auto column = [&](int n) { return plan[n].item<std::int64_t>(); };
            const auto elements = [&](int n, torch::Dtype kind) {
                return column(n) != 0 ? torch::zeros_like(w, options(kind))
                                      : torch::empty({0}, options(kind));
            };
            const bool is_quantized = column(3) == 0;
            corrections.push_back(elements(5, torch::kInt8));
            first.push_back(elements(7, is_quantized ? torch::kInt8 : torch::kFloat32));
            first_scales.push_back(torch::zeros({column(9)}, options(torch::kBFloat16)));
            second.push_back(elements(11, is_quantized ? torch::kUInt8 : torch::kFloat32));
            second_scales.push_back(torch::zeros({column(13)}, options(torch::kBFloat16)));
            steps.push_back(torch::zeros({}, torch::kInt64));
            rows.push_back(torch::cat({layout, plan, row({0, -1, 1, 3})}));
            layouts.push_back(layout);
            plans.push_back(plan);
        }
        table = torch::stack(rows);
        bad = torch::zeros({3}, torch::kInt64);
    }
    void step(std::int64_t nonfinite = 0) const {
        Tensors state;
        for (const auto* list : {&corrections, &first, &first_scales, &second, &second_scales})
            state.insert(state.end(), list->begin(), list->end());
        const std::vector<std::int64_t> places{0, 1, 2, 3, 4};
        call("step_", {weights, gradients, state, places, steps, bad, table, hyperparameters, scale,
                       c10::IValue(), 1.0, nonfinite, c10::IValue(), c10::IValue(), std::int64_t{0}});
    }
    [[nodiscard]] Tensors all() const {
        Tensors everything;
        for (const auto* list :
             {&weights, &corrections, &first, &first_scales, &second, &second_scales, &steps})
            everything.insert(everything.end(), list->begin(), list->end());
        everything.push_back(bad);
        for (const auto& value : given) {
            if (value.isTensor()) everything.push_back(value.toTensor());
        }
        return everything;
    }

    Tensors weights, gradients, corrections, first, first_scales, second, second_scales, steps, rows, layouts,
        plans;
    torch::Tensor table, hyperparameters, bad;
    c10::IValue scale;
    Values given;
};

void expect_same(const Call& a, const Call& b) {
    const auto of_a = a.all(), of_b = b.all();
    ASSERT_EQ(of_a.size(), of_b.size());
    for (std::size_t n = 0; n < of_a.size(); ++n) {
        ASSERT_EQ(of_a[n].scalar_type(), of_b[n].scalar_type()) << "tensor " << n;
        EXPECT_TRUE(torch::equal(of_a[n], of_b[n])) << "tensor " << n;
    }
}

struct Action {
    const char* name;
    std::function<void(Call&)> act;
    std::function<void(Call&)> prepare = [](Call&) {};
};

std::vector<Action> actions() {
    const auto gives = [](const char* name, auto arguments) {
        return [=](Call& c) { c.given = call(name, arguments(c)); };
    };
    const auto step = [](Call& c) { c.step(); };
    return {
        {"AStep", step},
        {"AStepOfGradientsInAnotherOrder", step,
         [](Call& c) { c.gradients[0] = torch::full({40, 8}, 0.02, torch::kBFloat16).t(); }},
        {"AStepWithALossScale", step, [](Call& c) { c.scale = torch::full({}, 4.0F); }},
        {"AStepThatStopsAtBadGradients", [](Call& c) { c.step(1); },
         [](Call& c) { c.gradients[0].fill_(std::numeric_limits<double>::infinity()); }},
        {"AStepWithOtherThreads",
         [](Call& c) {
             call("set_threads", {std::int64_t{2}});
             c.step();
         }},
        {"Counting", gives("count_bad",
                           [](Call& c) -> Values {
                               return {c.weights, c.gradients,       c.corrections,
                                       c.table,   c.hyperparameters, c10::IValue(),
                                       1.0,       c10::IValue(),     std::int64_t{0}};
                           })},
        {"TheNorm", gives("grad_norm",
                          [](Call& c) -> Values {
                              return {c.weights,         c.gradients, c.table,
                                      c.hyperparameters, 1.0,         std::int64_t{0}};
                          })},
        {"CheckedHyperparameters",
         gives("check_hyperparameters",
               [](Call& c) -> Values { return {c.hyperparameters, std::int64_t{3}}; })},
        {"ALayout", gives("layout",
                          [](Call&) -> Values {
                              using Integers = std::vector<std::int64_t>;
                              return {Integers{4, 32}, Integers{32, 1}, Integers{8, 32}, Integers{32, 1},
                                      Integers{2, 0}};
                          })},
        {"APlan", gives("plan",
                        [](Call& c) -> Values {
                            return {c.layouts[0], 3, c.hyperparameters, 0, 24, true, 0, 0, std::int64_t{1}};
                        })},
        {"Encoding", gives("encode_moment",
                           [](Call& c) -> Values {
                               return {torch::ones({8, 40}), c.layouts[0], std::int64_t{0}, std::int64_t{0},
                                       std::int64_t{0}};
                           })},
        {"Decoding", gives("decode_moment",
                           [](Call& c) -> Values {
                               return {c.first[0],      c.first_scales[0], c.layouts[0],
                                       std::int64_t{0}, std::int64_t{0},   std::int64_t{0}};
                           })},
        {"Checking", gives("check_moment",
                           [](Call& c) -> Values {
                               return {c.first[0], c.first_scales[0], c.layouts[0], c.plans[0],
                                       std::int64_t{0}};
                           })},
        {"Splitting", gives("split_weights",
                            [](Call&) -> Values {
                                return {torch::full({5, 6}, 0.3), std::int64_t{1}, std::int64_t{24}, false};
                            })},
        {"Joining",
         gives("join_weights",
               [](Call& c) -> Values { return {c.weights[0], c.corrections[0], std::int64_t{24}, false}; })},
        {"Correcting", gives("correction_of",
                             [](Call& c) -> Values {
                                 return {torch::full({8, 40}, 1.001), c.weights[0], std::int64_t{24}, false};
                             })},
        {"PlansThatAreKept",
         [](Call&) {
             const auto plan = call("make_step_plan", {})[0];
             call("free_step_plan", {plan});
         }},
    };
}

Call made(const Action& action) {
    Call c;
    c.step();
    action.prepare(c);
    return c;
}

void expect_same_course(const Action& action, Call& c, bool has_failed) {
    auto twin = made(action);
    if (!has_failed) action.act(twin);
    expect_same(c, twin);
    for (auto* one : {&c, &twin}) {
        one->gradients[0] = torch::full({8, 40}, 0.01);
        one->step();
    }
    expect_same(c, twin);
}

class FailedAllocations : public testing::TestWithParam<Action> {
    void SetUp() override { call("set_threads", {std::int64_t{1}}); }
};

TEST_P(FailedAllocations, ChangeNothing) {
    if (is_emulated()) GTEST_SKIP() << "what stands for a GPU here takes memory of the host itself";
    const auto& action = GetParam();
    const auto failed = fail_each_allocation([&] { return made(action); }, action.act,
                                             [&](Call& c, const FailedAllocation& failure) {
                                                 expect_same_course(action, c, failure.error != nullptr);
                                             },
                                             &is_any_error);
    RecordProperty("allocations", static_cast<int>(failed));
}

/// The same of a GPU's memory and of the kernels that are loaded there.
TEST_P(FailedAllocations, OfAGpuChangeNothing) {
    if (!is_emulated()) GTEST_SKIP() << "this library steps tensors on the CPU";
    using Fail = void (*)(const char* call, int error, int successes);
    const auto fail = reinterpret_cast<Fail>(::dlsym(library(), "flashoptim_emulated_fail"));
    const auto& action = GetParam();
    constexpr int kOutOfMemory = 2;  // cudaErrorMemoryAllocation
    const auto unload =
        reinterpret_cast<void (*)()>(::dlsym(library(), "flashoptim_emulated_unload_kernels"));
    for (const char* const what : {"cudaMalloc", "cudaMallocHost", "cudaFuncGetAttributes"}) {
        for (int successes = 0;; ++successes) {
            SCOPED_TRACE(std::string(what) + ' ' + std::to_string(successes));
            auto c = made(action);
            unload();
            fail(what, kOutOfMemory, successes);
            bool has_failed = false;
            try {
                action.act(c);
            } catch (const std::exception&) {
                has_failed = true;
            }
            fail(what, 0, 0);  // success: no failure is left
            if (!has_failed) break;
            expect_same_course(action, c, true);
            if (HasFailure()) return;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Of, FailedAllocations, testing::ValuesIn(actions()),
                         [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace flashoptim
