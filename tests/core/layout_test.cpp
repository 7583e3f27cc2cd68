// How the elements of tensors are counted. If these fail, shards get another dither than their whole, or
// memory that is not the tensor's is stepped.
#include "../support/step_cases.h"

namespace flashoptim {

namespace {

using Extents = std::vector<std::int64_t>;

Layout layout(Extents shape, Extents strides = {}) {
    return layout_of({nullptr, DType::kFloat32, std::move(shape), std::move(strides)}, "the tensor");
}
Layout shard(Extents shape, Extents whole, Extents offset, Extents strides = {}, Extents whole_strides = {}) {
    return layout_of({nullptr, DType::kFloat32, std::move(shape), std::move(strides)},
                     {std::move(whole), std::move(whole_strides), std::move(offset)}, "the shard");
}
void expect_rows(const Layout& l, std::int64_t rows, std::int64_t length) {
    EXPECT_EQ(l.rows, rows);
    EXPECT_EQ(l.row_length, length);
    EXPECT_EQ(l.numel, rows * length);
}

}  // namespace

TEST(Layout, RowsAreTheFirstDimensionInMemoryOrder) {
    expect_rows(layout({4, 5}), 4, 5);
    expect_rows(layout({4, 5}, {1, 4}), 5, 4);  // transposed
    expect_rows(layout({2, 3, 4, 5}), 2, 60);
    expect_rows(layout({2, 3, 4, 5}, {60, 1, 15, 3}), 2, 60);  // channels last
    expect_rows(layout({3, 2, 4}, {4, 12, 1}), 2, 12);
    EXPECT_EQ(layout({4, 70}).groups_per_row(), 3);
}

TEST(Layout, DimensionsOfExtentOneAreLeftOut) {
    expect_rows(layout({1, 7, 1}), 1, 7);
    EXPECT_TRUE(layout({1, 7, 1}).one_dimensional);
    expect_rows(layout({1, 7, 3}), 7, 3);
    EXPECT_FALSE(layout({1, 7, 3}).one_dimensional);
    // Their strides say nothing.
    expect_rows(layout({1, 7, 3}, {999, 3, 1}), 7, 3);
    expect_rows(layout({7, 1, 3}, {3, -5, 1}), 7, 3);
}

TEST(Layout, ScalarsAndEmptyTensors) {
    expect_rows(layout({}), 1, 1);
    EXPECT_TRUE(layout({}).one_dimensional);
    expect_rows(layout({1, 1}), 1, 1);
    EXPECT_EQ(layout({0}).numel, 0);
    EXPECT_EQ(layout({3, 0, 2}).numel, 0);
    EXPECT_EQ(layout({0, 5}).rows, 0);
}

TEST(Layout, WhatIsNotDenseIsRefusedByName) {
    for (const auto& [shape, strides] :
         std::vector<std::pair<Extents, Extents>>{{{4, 5}, {0, 1}},   // expanded
                                                  {{4, 5}, {2, 1}},   // overlapping
                                                  {{4, 5}, {6, 1}},   // with holes
                                                  {{4, 5}, {5, -1}},  // backwards
                                                  {{4}, {2}},
                                                  {{2, 2}, {1, 1}}}) {
        expect_refused<InvalidArgument>("the tensor of shape", [&] { layout(shape, strides); });
        expect_refused<InvalidArgument>("is not dense", [&] { layout(shape, strides); });
    }
}

TEST(Layout, WrongNumbersAreRefused) {
    expect_refused<InvalidArgument>("another number of strides", [] { layout({4, 5}, {1}); });
    expect_refused<InvalidArgument>("negative extent", [] { layout({4, -5}); });
    expect_refused<InvalidArgument>("2^63", [] { layout({1LL << 32, 1LL << 32}); });
    expect_refused<InvalidArgument>("2^63", [] { shard({1, 32}, {1LL << 40, 1LL << 40}, {0, 0}); });
}

TEST(Layout, ShardsOfRowsAndColumns) {
    const auto rows = shard({3, 100}, {10, 100}, {4, 0});
    expect_rows(rows, 3, 100);
    EXPECT_EQ(rows.row_offset, 4);
    EXPECT_EQ(rows.column_offset, 0);
    EXPECT_EQ(rows.whole_numel, 1000);

    const auto columns = shard({10, 64}, {10, 100}, {0, 32});
    expect_rows(columns, 10, 64);
    EXPECT_EQ(columns.column_offset, 32);
    EXPECT_EQ(columns.whole_row_length, 100);
    expect_rows(shard({10, 4}, {10, 100}, {0, 96}), 10, 4);  // the last piece may end anywhere

    // The second of three dimensions cut in pieces of 2 * 16 = 32 elements of each row.
    const auto block = shard({4, 2, 16}, {4, 8, 16}, {0, 4, 0});
    expect_rows(block, 4, 32);
    EXPECT_EQ(block.column_offset, 64);
    // One index of the second, half of the third.
    EXPECT_EQ(shard({4, 1, 32}, {4, 8, 64}, {0, 3, 32}).column_offset, 3 * 64 + 32);

    const auto flat = shard({64}, {1000}, {96});
    expect_rows(flat, 1, 64);
    EXPECT_EQ(flat.column_offset, 96);
    EXPECT_TRUE(flat.one_dimensional);

    const auto transposed = shard({100, 3}, {100, 10}, {0, 4}, {1, 100}, {1, 100});
    expect_rows(transposed, 3, 100);
    EXPECT_EQ(transposed.row_offset, 4);
}

TEST(Layout, ShardsThatSplitAGroupAreRefused) {
    expect_refused<InvalidArgument>("multiples of 32", [] { shard({10, 60}, {10, 100}, {0, 0}); });
    expect_refused<InvalidArgument>("multiples of 32", [] { shard({10, 68}, {10, 100}, {0, 16}); });
    expect_refused<InvalidArgument>("several pieces", [] { shard({4, 2, 32}, {4, 8, 64}, {0, 0, 0}); });
}

TEST(Layout, VectorsAreCutAnywhereUnlessTheirMomentsAreQuantized) {
    const auto part = shard({31, 1}, {100, 1}, {50, 0});
    EXPECT_EQ(part.column_offset, 50);
    EXPECT_TRUE(part.splits_groups());
    EXPECT_FALSE(shard({36}, {100}, {64}).splits_groups());
    const auto plan = [&](Format format, std::int64_t min_numel_1d) {
        StorageOptions options;
        options.format = format;
        options.min_quantized_numel_1d = min_numel_1d;
        return plan_storage(Rule::kAdamW, {}, options, DType::kBFloat16, part, "bias").moments;
    };
    EXPECT_EQ(plan(Format::kNative, 101), MomentStorage::kFloat32);
    EXPECT_EQ(plan(Format::kPaper, 0), MomentStorage::kPaper);  // its groups run over the part alone
    expect_refused<InvalidArgument>("bias is a part of a vector of 100 elements",
                                    [&] { plan(Format::kNative, 100); });
}

TEST(Layout, ShardsOutsideTheirWholeAreRefused) {
    expect_refused<InvalidArgument>("does not lie inside", [] { shard({3, 100}, {10, 100}, {8, 0}); });
    expect_refused<InvalidArgument>("does not lie inside", [] { shard({3, 100}, {10, 100}, {-1, 0}); });
    expect_refused<InvalidArgument>("does not lie inside", [] { shard({3, 100}, {2, 100}, {0, 0}); });
    expect_refused<InvalidArgument>("does not lie inside",
                                    [] { shard({3, 100}, {10, 100}, {INT64_MAX, 0}); });
    expect_refused<InvalidArgument>("number of dimensions", [] { shard({3, 100}, {10}, {0}); });
    expect_refused<InvalidArgument>("another stride order than its",
                                    [] { shard({5, 32}, {5, 64}, {0, 0}, {1, 5}); });
}

TEST(Layout, CopiesBetweenStrideOrders) {
    const std::vector<float> row_major = {0, 1, 2, 3, 4, 5};
    std::vector<float> transposed(6);
    copy_in_order({const_cast<float*>(row_major.data()), DType::kFloat32, {2, 3}, {3, 1}}, {1, 2},
                  transposed.data());
    EXPECT_EQ(transposed, (std::vector<float>{0, 3, 1, 4, 2, 5}));
    const auto same = [](const Extents& shape, const Extents& a, const Extents& b) {
        return same_memory_order(shape, a, b);
    };
    EXPECT_TRUE(same({2, 1, 3}, {3, 77, 1}, {3, 3, 1}));
    EXPECT_FALSE(same({2, 3}, {3, 1}, {1, 2}));
    EXPECT_TRUE(same({2, 0, 3}, {3, 3, 1}, {1, 1, 2})) << "nothing lies in the same places as nothing";
}

}  // namespace flashoptim
