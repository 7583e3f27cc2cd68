// Any cut of a tensor at group boundaries steps to the bits of the whole. If this fails, training on another
// number of devices is another training.
#include <map>
#include <numeric>

#include "../support/step_cases.h"

namespace flashoptim {

namespace {

using Extents = std::vector<std::int64_t>;

struct Piece {
    Extents shape, offset;
};

/// Calls visit(place in the whole, place in the piece) for every element of the piece.
template <class Visit>
void for_each_element(const Piece& piece, const Extents& whole_strides, const Extents& strides, Visit visit) {
    Extents index(piece.shape.size(), 0);
    const auto numel =
        std::accumulate(piece.shape.begin(), piece.shape.end(), std::int64_t{1}, std::multiplies<>());
    for (std::int64_t n = 0; n < numel; ++n) {
        std::int64_t whole_place = 0, place = 0;
        for (std::size_t d = 0; d < index.size(); ++d) {
            whole_place += (piece.offset[d] + index[d]) * whole_strides[d];
            place += index[d] * strides[d];
        }
        visit(static_cast<std::size_t>(whole_place), static_cast<std::size_t>(place));
        for (std::size_t d = index.size(); d-- > 0;) {
            if (++index[d] < piece.shape[d]) break;
            index[d] = 0;
        }
    }
}

/// Strides of a dense tensor of `shape` whose dimensions are ordered as in `whole_strides`.
Extents strides_like(const Extents& shape, const Extents& whole_strides) {
    std::vector<std::size_t> order(shape.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return whole_strides[a] < whole_strides[b]; });
    Extents strides(shape.size());
    std::int64_t stride = 1;
    for (const auto d : order) {
        strides[d] = stride;
        stride *= shape[d];
    }
    return strides;
}

/// Steps a tensor whole and in pieces; every weight, and every moment, must be the same.
void expect_same_bits_in_pieces(const RuleCase& rule, const StorageCase& storage, const Extents& shape,
                                Extents strides, const std::vector<Piece>& pieces) {
    if (strides.empty()) strides = row_major_strides(shape);
    OptimizerOptions options;
    options.storage = storage.options;
    Noise noise(3);
    Tensor weight(storage.weight, shape, strides), gradient(DType::kFloat32, shape, strides);
    weight.fill([&] { return noise.normal(); });
    Optimizer whole(rule.rule, rule.hyperparameters, options), cut(rule.rule, rule.hyperparameters, options);

    std::vector<Tensor> weights, gradients;
    std::vector<Extents> piece_strides;
    for (const auto& piece : pieces) {
        piece_strides.push_back(strides_like(piece.shape, strides));
        weights.emplace_back(storage.weight, piece.shape, piece_strides.back());
        gradients.emplace_back(DType::kFloat32, piece.shape, piece_strides.back());
        for_each_element(piece, strides, piece_strides.back(),
                         [&](auto from, auto to) { weights.back().set(to, weight.get(from)); });
    }
    whole.add_parameter(weight.view());
    for (std::size_t n = 0; n < pieces.size(); ++n) {
        cut.add_parameter(weights[n].view(), {}, 0, Shard{shape, strides, pieces[n].offset});
    }
    for (int t = 0; t < 4; ++t) {
        gradient.fill([&] { return noise.wide(); });
        if (t == 2) gradient.set(gradient.numel() / 3, NAN);
        for (std::size_t n = 0; n < pieces.size(); ++n) {
            for_each_element(pieces[n], strides, piece_strides[n],
                             [&](auto from, auto to) { gradients[n].set(to, gradient.get(from)); });
            cut.set_gradient(n, gradients[n].view());
        }
        whole.set_gradient(0, gradient.view());
        whole.step();
        cut.step();
    }
    EXPECT_TRUE(test::holds_numbers(whole)) << rule.name << " " << storage.name;
    const auto masters = whole.master(0);
    const auto moments = test::moments_of(whole, 0);
    std::size_t covered = 0, different = 0;
    for (std::size_t n = 0; n < pieces.size(); ++n) {
        const auto piece_masters = cut.master(n);
        const auto piece_moments = test::moments_of(cut, n);
        for_each_element(pieces[n], strides, piece_strides[n], [&](auto from, auto to) {
            ++covered;
            bool same = bits_of(masters[from]) == bits_of(piece_masters[to]);
            for (std::size_t m = 0; m < moments.size(); ++m) {
                if (!moments[m].empty()) same &= bits_of(moments[m][from]) == bits_of(piece_moments[m][to]);
            }
            if (!same) ++different;
        });
    }
    EXPECT_EQ(covered, masters.size());
    EXPECT_EQ(different, 0U) << rule.name << " " << storage.name;
}

std::vector<StorageCase> native_cases() {
    std::vector<StorageCase> cases;
    for (auto& storage : storage_cases()) {
        const bool chosen = storage.weight == DType::kBFloat16 || storage.options.master_weight_bits == 24;
        if (storage.options.format == Format::kNative && chosen) cases.push_back(storage);
    }
    return cases;
}

class ShardsOfEveryRule : public ::testing::TestWithParam<RuleCase> {};
INSTANTIATE_TEST_SUITE_P(Rules, ShardsOfEveryRule, ::testing::ValuesIn(rule_cases()),
                         [](const auto& rule) { return rule.param.name; });

}  // namespace

TEST_P(ShardsOfEveryRule, CutBetweenRowsGivesTheSameBits) {
    for (const auto& storage : native_cases()) {
        expect_same_bits_in_pieces(GetParam(), storage, {13, 67}, {},
                                   {{{4, 67}, {0, 0}}, {{1, 67}, {4, 0}}, {{8, 67}, {5, 0}}});
        expect_same_bits_in_pieces(GetParam(), storage, {6, 5, 11}, {},
                                   {{{2, 5, 11}, {0, 0, 0}}, {{4, 5, 11}, {2, 0, 0}}});
    }
}

TEST_P(ShardsOfEveryRule, CutBetweenGroupsOfARowGivesTheSameBits) {
    for (const auto& storage : native_cases()) {
        expect_same_bits_in_pieces(GetParam(), storage, {7, 150}, {},
                                   {{{7, 32}, {0, 0}}, {{7, 96}, {0, 32}}, {{7, 22}, {0, 128}}});
        // A grid of four.
        expect_same_bits_in_pieces(
            GetParam(), storage, {6, 100}, {},
            {{{2, 64}, {0, 0}}, {{2, 36}, {0, 64}}, {{4, 64}, {2, 0}}, {{4, 36}, {2, 64}}});
        expect_same_bits_in_pieces(GetParam(), storage, {3, 6, 16}, {},
                                   {{{3, 2, 16}, {0, 0, 0}}, {{3, 4, 16}, {0, 2, 0}}});
    }
}

TEST_P(ShardsOfEveryRule, CutOfAFlatBufferGivesTheSameBits) {
    for (const auto& storage : native_cases()) {
        expect_same_bits_in_pieces(GetParam(), storage, {1000}, {},
                                   {{{96}, {0}}, {{640}, {96}}, {{264}, {736}}});
    }
}

TEST_P(ShardsOfEveryRule, CutOfATensorInAnotherStrideOrderGivesTheSameBits) {
    for (const auto& storage : native_cases()) {
        // Channels last: memory order is [4, 5, 6, 8], so the first dimension cuts rows.
        expect_same_bits_in_pieces(GetParam(), storage, {4, 8, 5, 6}, {240, 1, 48, 8},
                                   {{{1, 8, 5, 6}, {0, 0, 0, 0}}, {{3, 8, 5, 6}, {1, 0, 0, 0}}});
        // Transposed: memory rows are the second dimension.
        expect_same_bits_in_pieces(GetParam(), storage, {40, 9}, {1, 40},
                                   {{{40, 4}, {0, 0}}, {{40, 5}, {0, 4}}});
        expect_same_bits_in_pieces(GetParam(), storage, {40, 9}, {1, 40},
                                   {{{32, 9}, {0, 0}}, {{8, 9}, {32, 0}}});
    }
}

namespace {

/// AdamW in native 24 bit on one shard, three steps.
std::vector<std::byte> bytes_of_shard(const Extents& shape, const Shard& shard) {
    const auto rule = rule_cases()[4];
    OptimizerOptions options;
    options.storage.min_quantized_numel = 0;
    Noise noise(9);
    Tensor weight(DType::kBFloat16, shape), gradient(DType::kBFloat16, shape);
    weight.fill([&] { return noise.normal(); });
    Optimizer optimizer(rule.rule, rule.hyperparameters, options);
    optimizer.add_parameter(weight.view(), {}, 0, shard);
    for (int t = 0; t < 3; ++t) {
        gradient.fill([&] { return noise.normal(); });
        optimizer.set_gradient(0, gradient.view());
        optimizer.step();
    }
    return bytes_of_numbers(optimizer);
}

}  // namespace

// An element's dither follows from its index mod 512, so a shard far behind 2^31 must step as one whose index
// is small and equal mod 512: a 32-bit index anywhere would break this.
TEST(Shards, IndicesBeyond32BitsKeepTheirDither) {
    const Extents shape = {5, 1000};
    const std::int64_t far_row = (std::int64_t{1} << 33) + 7;
    EXPECT_GT(far_row * 1000, std::int64_t{1} << 42);
    const auto expected = bytes_of_shard(shape, {{64, 1000}, {}, {7, 0}});
    EXPECT_TRUE(bytes_of_shard(shape, {{std::int64_t{1} << 34, 1000}, {}, {far_row, 0}}) == expected);
    EXPECT_FALSE(bytes_of_shard(shape, {{64, 1000}, {}, {8, 0}}) == expected)
        << "the dither does not see the row at all";

    const std::int64_t far_column = (std::int64_t{1} << 32) + 64;
    EXPECT_TRUE(bytes_of_shard({2, 96}, {{2, std::int64_t{1} << 33}, {}, {0, far_column}}) ==
                bytes_of_shard({2, 96}, {{2, 1024}, {}, {0, 64}}));
}

// Whether small tensors keep fp32 moments is decided for the whole, or shards of one
// tensor would train differently.
TEST(Shards, ThresholdsCountTheWholeTensor) {
    Hyperparameters h;
    Optimizer optimizer(Rule::kAdamW, h);
    Tensor a(DType::kBFloat16, {2, 64}), b(DType::kBFloat16, {64}), c(DType::kBFloat16, {2, 64});
    optimizer.add_parameter(a.view(), "part of a large", 0, Shard{{100, 64}, {}, {0, 0}});
    optimizer.add_parameter(b.view(), "part of a long", 0, Shard{{70016}, {}, {640}});
    optimizer.add_parameter(c.view(), "part of a small", 0, Shard{{4, 64}, {}, {2, 0}});
    EXPECT_EQ(optimizer.storage(0).moments, MomentStorage::kNative);
    EXPECT_EQ(optimizer.storage(1).moments, MomentStorage::kNative);
    EXPECT_EQ(optimizer.storage(2).moments, MomentStorage::kFloat32);
}

}  // namespace flashoptim
