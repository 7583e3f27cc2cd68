// The CUDA kernels against the scalar backend, bit for bit: linked once with their emulation on the host and
// once with the device's. If these fail, a model trains otherwise on a GPU than on the CPU, and its
// checkpoints mean something else there.
#include "cuda/tensor_list.h"
#include "subject.h"

namespace flashoptim::cuda {

namespace {

void expect_same_bits(const RuleCase& rule, const StorageCase& storage, DType gradient,
                      const std::vector<TensorCase>& cases, int steps = 4) {
    TensorSet expected(rule, storage, gradient, cases), found(rule, storage, gradient, cases);
    ThreadPool pool(1);
    Subject subject;
    for (int t = 1; t <= steps; ++t) {
        expected.fill_gradients(t);
        found.fill_gradients(t);
        step(expected.items(), pool, Backend::kScalar);
        subject.step(found);
        for (std::size_t n = 0; n < cases.size(); ++n) {
            ASSERT_EQ(subject.bad_elements[n], expected.items()[n].bad_elements)
                << rule.name << " " << storage.name << ", tensor " << n << ", step " << t;
        }
        ASSERT_TRUE(expected.same_as(found))
            << rule.name << " " << storage.name << " gradients in " << name_of(gradient) << ", step " << t;
    }
}

StorageCase native24(DType weight = DType::kBFloat16) {
    return {"native", {Format::kNative, 24, true, 0, 0}, weight};
}

class CudaKernels : public ::testing::TestWithParam<RuleCase> {
    void SetUp() override { need_device(); }
};
INSTANTIATE_TEST_SUITE_P(Rules, CudaKernels, ::testing::ValuesIn(rule_cases()),
                         [](const auto& rule) { return rule.param.name; });
class CudaNorm : public OnDevice {};
class CudaList : public OnDevice {};

}  // namespace

// If the comparison let more through than NaN for NaN, a difference between a GPU and
// the CPU could hide behind it.
TEST(CudaTensorSets, OnlyNanIsTheSameAsAnotherNan) {
    for (const auto& [storage, nan, other_nan, infinity] :
         {std::tuple{native24(), 0x7fc0U, 0xffc1U, 0x7f80U},
          std::tuple{native24(DType::kFloat16), 0x7e00U, 0xfe01U, 0x7c00U},
          std::tuple{native24(DType::kFloat32), 0x7fffffffU, 0xffc00000U, 0xff800000U}}) {
        TensorSet a(rule_cases()[4], storage, DType::kFloat32, {{{2, 64}}});
        TensorSet b(rule_cases()[4], storage, DType::kFloat32, {{{2, 64}}});
        const auto size = size_of(storage.weight);
        const auto set = [&](TensorSet& in, std::uint32_t bits) {
            std::memcpy(static_cast<std::byte*>(in.items()[0].weight) + 3 * size, &bits, size);
            return in.same_as(in);
        };
        EXPECT_TRUE(a.same_as(b));
        EXPECT_TRUE(set(a, nan) && set(b, other_nan) && a.same_as(b));
        EXPECT_TRUE(set(b, infinity) && !a.same_as(b) && !b.same_as(a));
        EXPECT_TRUE(set(a, infinity) && a.same_as(b));
        EXPECT_TRUE(set(a, infinity ^ 1U << (8 * size - 1)) && !a.same_as(b));
        set(a, infinity);
        *static_cast<std::uint8_t*>(a.items()[0].state.at(codes_place(1))) =
            0xff;  // a code, whatever its bits
        EXPECT_FALSE(a.same_as(b));
    }
}

TEST_P(CudaKernels, EveryStorageAndGradient) {
    for (const auto& storage : storage_cases(GetParam().rule)) {
        for (const auto gradient : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
            expect_same_bits(GetParam(), storage, gradient, {{{9, 67}}, {{640}}, {{5, 96}}});
        }
    }
}

TEST_P(CudaKernels, EverySizeAndRowLengthUpTo70) {
    std::vector<TensorCase> cases;
    for (std::int64_t size = 1; size <= 70; ++size) {
        cases.push_back({{size}});
        cases.push_back({{5, size}});
    }
    cases.push_back({{}});
    cases.push_back({{0, 7}});
    cases.push_back({{3}});
    for (const auto& storage :
         {native24(), StorageCase{"paper", {Format::kPaper, 24, true, 0, 0}, DType::kFloat16},
          StorageCase{"fp32", {Format::kFloat32, 32, true, 0, 0}, DType::kBFloat16}}) {
        if (storage.options.format == Format::kPaper && !traits_of(GetParam().rule).has_paper_order) continue;
        expect_same_bits(GetParam(), storage, DType::kBFloat16, cases, 3);
    }
}

// Rows that end in the middle of a chunk, chunks that begin in the middle of a
// row, tensors of several chunks.
TEST_P(CudaKernels, RowsAndChunksThatDoNotMatch) {
    const std::vector<TensorCase> cases = {{{2, 16385}}, {{3, 5471}},  {{331, 101}}, {{40001}},
                                           {{1100, 32}}, {{2, 33000}}, {{700, 8}},   {{4097, 9}},
                                           {{16384}},    {{16416}},    {{2, 2049}},  {{2080}}};
    expect_same_bits(GetParam(), native24(), DType::kBFloat16, cases, 3);
    if (!traits_of(GetParam().rule).has_paper_order) return;
    expect_same_bits(GetParam(), {"paper", {Format::kPaper, 32, true, 0, 0}, DType::kBFloat16},
                     DType::kFloat32, cases, 3);
}

TEST_P(CudaKernels, EveryAlignment) {
    std::vector<TensorCase> cases;
    for (std::int64_t misalignment = 0; misalignment < 9; ++misalignment) {
        for (const auto& shape : {std::vector<std::int64_t>{7, 72}, {300}, {3, 67}}) {
            cases.push_back({shape, misalignment, {}, {}});
        }
    }
    for (const auto weight : {DType::kFloat32, DType::kBFloat16}) {
        for (const auto gradient : {DType::kFloat32, DType::kBFloat16}) {
            expect_same_bits(GetParam(), native24(weight), gradient, cases, 3);
        }
    }
}

// Columns cut at multiples of 32, rows cut anywhere, indices beyond 2^31: the dither must follow
// the index in the whole tensor.
TEST_P(CudaKernels, Shards) {
    const std::vector<TensorCase> cases = {
        {{4, 64}, 0, {9, 200}, {3, 32}},
        {{3, 8}, 0, {9, 200}, {6, 192}},
        {{5, 67}, 0, {3000000000, 67}, {2999999990, 0}},
        {{3, 96}, 0, {70000, 100003}, {65001, 99904}},
        {{96}, 0, {5000000000}, {4999999904}},
        {{2, 17, 3}, 0, {400000000, 17, 3}, {399999998, 0, 0}},
    };
    for (const auto& storage : storage_cases(GetParam().rule)) {
        const bool chosen = storage.weight == DType::kBFloat16 || storage.options.master_weight_bits == 24;
        if (storage.options.format != Format::kPaper && chosen) {
            expect_same_bits(GetParam(), storage, DType::kBFloat16, cases);
        }
    }
}

// What the fast path must leave to the slow one: special and huge weights, corrections against other
// weights, gradients at the bound.
TEST_P(CudaKernels, WeightsAndGradientsOutOfTheOrdinary) {
    const std::vector<std::uint16_t> highs = {0x0000, 0x8000, 0x0001, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0,
                                              0x7eff, 0x7bff, 0x7c00, 0xfc00, 0x7800, 0x3c00, 0x0400};
    auto rule = GetParam();
    rule.hyperparameters.weight_decay = 3.0;
    for (const double learning_rate : {0.0, 0.3, 1e30}) {
        rule.hyperparameters.learning_rate = learning_rate;
        for (const auto& storage : storage_cases(GetParam().rule)) {
            TensorSet expected(rule, storage, DType::kFloat32, {{{40, 96}}});
            TensorSet found(rule, storage, DType::kFloat32, {{{40, 96}}});
            ThreadPool pool(1);
            Subject subject;
            for (int t = 1; t <= 3; ++t) {
                for (auto* set : {&expected, &found}) {
                    set->fill_gradients(t);
                    auto& item = set->items()[0];
                    for (std::size_t n = 0; n < highs.size(); ++n) {
                        const auto at = n * 2 * 96 + 7 * n;
                        const auto size = size_of(storage.weight);
                        const std::uint32_t bits =
                            size == 4 ? std::uint32_t{highs[n]} << 16U : std::uint32_t{highs[n]};
                        std::memcpy(static_cast<std::byte*>(item.weight) + at * size, &bits, size);
                        if (item.plan.correction().count != 0) {
                            const auto bytes = size_of(item.plan.correction().dtype);
                            std::memset(static_cast<std::byte*>(item.state.at(kCorrectionPlace)) + at * bytes,
                                        n % 2 == 0 ? 0xff : 0x7f, bytes);
                        }
                    }
                    set->set_gradient(item, 95, 0x1p47F);
                    set->set_gradient(item, 32 * 96, 0x1.fffffep47F);
                    set->set_gradient(item, 33 * 96, 0x1p48F);
                    set->set_gradient(item, 34 * 96, -INFINITY);
                    set->set_gradient(item, 35 * 96, 1e-42F);
                }
                step(expected.items(), pool, Backend::kScalar);
                subject.step(found);
                ASSERT_EQ(subject.bad_elements[0], expected.items()[0].bad_elements) << storage.name;
            }
            ASSERT_TRUE(expected.same_as(found))
                << rule.name << " " << storage.name << " at rate " << learning_rate;
        }
    }
}

// If a skipped step writes anything, or a step of good gradients is skipped, mixed-precision
// training goes wrong without a word.
TEST_P(CudaKernels, StepsThatAreSkippedChangeNothing) {
    for (const auto& storage : storage_cases(GetParam().rule)) {
        TensorSet set(GetParam(), storage, DType::kFloat32, {{{9, 67}}, {{640}}});
        Subject subject;
        subject.steps_done = 0;
        subject.nonfinite = NonFinite::kSkipStep;
        set.fill_gradients(2);  // with a NaN
        const auto before = set.bytes();
        subject.step(set);
        EXPECT_EQ(subject.steps_done, 0);
        EXPECT_TRUE(subject.was_skipped());
        EXPECT_EQ(subject.bad_elements[0], 1U) << storage.name;
        EXPECT_TRUE(before == set.bytes()) << storage.name;
        ThreadPool pool(1);
        EXPECT_EQ(count_bad_gradients(set.items(), pool), subject.count_bad(set));

        set.fill_gradients(1);
        subject.found_inf = 1.0F;
        const auto good = set.bytes();
        subject.step(set);
        EXPECT_EQ(subject.steps_done, 0);
        EXPECT_TRUE(subject.was_skipped());
        EXPECT_TRUE(good == set.bytes()) << storage.name;
        subject.found_inf = 0.0F;
        subject.step(set);
        EXPECT_EQ(subject.steps_done, 1);
        EXPECT_FALSE(subject.was_skipped());
        EXPECT_FALSE(good == set.bytes()) << storage.name;
    }
}

// Step count, learning rate, loss scale and clip coefficient in device memory: the bits of
// the same values on the host.
TEST_P(CudaKernels, ValuesFromDeviceMemory) {
    for (const auto& storage : storage_cases(GetParam().rule)) {
        auto rule = GetParam();
        rule.hyperparameters.learning_rate = 0.02;
        TensorSet expected(rule, storage, DType::kBFloat16, {{{9, 67}}, {{640}}});
        TensorSet found(GetParam(), storage, DType::kBFloat16, {{{9, 67}}, {{640}}});
        ThreadPool pool(1);
        Subject subject;
        subject.steps_done = 0;
        subject.learning_rate = 0.02;
        subject.grad_scale = 1024.0F;
        subject.clip_coefficient = 0.37F;
        for (int t = 1; t <= 3; ++t) {
            expected.fill_gradients(t);
            found.fill_gradients(t);
            for (auto& item : expected.items()) item.gradient_factor = 1.0F / 1024.0F * 0.37F;
            for (auto& item : found.items()) item.step = 1;
            step(expected.items(), pool, Backend::kScalar);
            subject.step(found);
            EXPECT_EQ(subject.steps_done, t);
        }
        EXPECT_TRUE(expected.same_as(found)) << rule.name << " " << storage.name;
    }
}

// A program that is built with CUDA must start, and say what is wrong, where there is no driver.
TEST(CudaDevice, ThatDoesNotExistIsNamed) {
    const int count = device_count();
    expect_refused<CudaError>("CUDA device " + std::to_string(count) + " does not exist",
                              [&] { const StepPlan plan(count); });
}

namespace {

void expect_bits_of_cpu(TensorSet& set, DType gradient) {
    for (int t = 1; t <= 3; ++t) {  // bad elements are left out
        set.fill_gradients(t);
        for (auto& item : set.items()) item.gradient_factor = 0.3F;
        ThreadPool pool(1);
        Subject subject;
        EXPECT_EQ(subject.norm(set), grad_norm(set.items(), pool)) << name_of(gradient);
    }
}

}  // namespace

TEST_F(CudaNorm, HasTheBitsOfTheCpu) {
    const auto rule = rule_cases()[4];
    for (const auto gradient : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        TensorSet set(rule, native24(), gradient,
                      {{{3}}, {{16384}}, {{0, 3}}, {{16385}}, {{70, 1001}}, {{255}}, {{2, 3, 50000}}, {{0}}});
        expect_bits_of_cpu(set, gradient);
    }
    // More blocks than totals.
    TensorSet many(rule, native24(), DType::kBFloat16, std::vector<TensorCase>(700, TensorCase{{5}}));
    expect_bits_of_cpu(many, DType::kBFloat16);
}

// Chunks are larger in larger lists: one plan steps lists of every size of chunk, with chunks that
// begin in the middle of a row.
TEST_F(CudaList, ChunksOfEverySize) {
    constexpr std::int64_t kFirstRow = 1032, kSecondRow = 171;  // groups
    Subject subject;
    for (const auto& [groups, chunk] : {std::pair{1 << 19, 512}, std::pair{(1 << 17) - 1, 64},
                                        std::pair{1 << 17, 128}, std::pair{1 << 18, 256}}) {
        const std::int64_t rest = groups - 2 * kFirstRow - 3 * kSecondRow;
        const std::vector<TensorCase> cases = {{{2, 33000}}, {{rest, 8}}, {{3, 5471}}};
        TensorSet expected(rule_cases()[4], native24(), DType::kBFloat16, cases);
        TensorSet found(rule_cases()[4], native24(), DType::kBFloat16, cases);
        expected.fill_gradients(2);
        found.fill_gradients(2);
        std::int64_t found_groups = 0;
        for (const auto& item : found.items()) {
            const auto rows = rows_of(item);
            found_groups += item.layout->numel / rows.length * rows.groups;
        }
        ASSERT_EQ(chunk_size(found_groups), chunk);
        ThreadPool pool(1);
        EXPECT_EQ(subject.count_bad(found), cases.size());
        step(expected.items(), pool, Backend::kScalar);
        subject.step(found);
        EXPECT_EQ(subject.bad_elements, (std::vector<std::uint64_t>{1, 1, 1}));
        EXPECT_TRUE(expected.same_as(found)) << "chunks of " << chunk;
    }
}

// Different rules, formats and step counts in one list: each tensor must get its own kernel and scalars.
TEST_F(CudaList, OfManyKinds) {
    const auto make = [] {
        TensorSet all(rule_cases()[0], native24(), DType::kFloat32, {{{3, 40}}});
        all.fill_gradients(1);
        std::int64_t t = 1;
        for (const auto& rule : rule_cases()) {
            for (const auto& storage : storage_cases(rule.rule)) {
                TensorSet set(rule, storage, DType::kBFloat16, {{{5, 67}}, {{40}}, {{0}}});
                set.fill_gradients(1);
                for (auto& item : set.items()) {
                    item.step = t % 40 + 1;
                    item.gradient_factor = 0.5F;
                    item.hyperparameters.maximize = t % 3 == 0;
                    ++t;
                }
                all.append(std::move(set));
            }
        }
        return all;
    };
    auto expected = make(), found = make();
    ThreadPool pool(1);
    Subject subject;
    step(expected.items(), pool, Backend::kScalar);
    subject.step(found);
    EXPECT_TRUE(expected.same_as(found));
}

}  // namespace flashoptim::cuda
