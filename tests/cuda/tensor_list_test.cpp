// How a list is cut into chunks. If these fail, most of a GPU idles in a small model's step, or kernels step
// elements that are not theirs.
#include "cuda/tensor_list.h"

#include <array>
#include <deque>

#include "../support/step_cases.h"
#include "flashoptim/step.h"

namespace flashoptim::cuda {

namespace {

/// Items of AdamW in the native format whose buffers nobody reads or writes.
class Items {
public:
    explicit Items(const std::vector<std::vector<std::int64_t>>& shapes) {
        for (const auto& shape : shapes) add(shape);
    }
    void add(const std::vector<std::int64_t>& shape) {
        StepItem item;
        layouts_.push_back(layout_of({nullptr, DType::kBFloat16, shape, row_major_strides(shape)}));
        item.layout = &layouts_.back();
        item.rule = Rule::kAdamW;
        item.plan = plan_storage(item.rule, item.hyperparameters, {}, DType::kBFloat16, layouts_.back(), "w");
        item.weight = item.state.at(kCorrectionPlace) = memory_.data();
        item.state.at(codes_place(0)) = item.state.at(codes_place(1)) = memory_.data();
        item.state.at(scales_place(0)) = item.state.at(scales_place(1)) = memory_.data();
        item.gradient = memory_.data();
        items.push_back(item);
    }
    std::vector<StepItem> items;

private:
    std::deque<Layout> layouts_;
    alignas(16) std::array<std::byte, 16> memory_{};
};

Launchers no_launchers(Rule /*rule*/, const StoragePlan& /*plan*/) { return {}; }

void set(DeviceTensorList& list, const Items& items) { list.set(items.items, {}, &no_launchers); }

/// Every group of every tensor is in one chunk.
void expect_cut(const DeviceTensorList& list) {
    std::size_t next = 0;
    for (std::size_t n = 0; n < list.tensors().size(); ++n) {
        const auto& t = list.tensors()[n];
        for (std::int64_t at = 0; at < t.rows * t.groups_in_row; at += list.groups_in_chunk(), ++next) {
            ASSERT_LT(next, list.chunks().size());
            const auto& chunk = list.chunks()[next];
            ASSERT_EQ(chunk.tensor, n);
            ASSERT_EQ(chunk.row * t.groups_in_row + chunk.group, at);
            ASSERT_LT(chunk.group, t.groups_in_row);
        }
    }
    EXPECT_EQ(next, list.chunks().size());
}

}  // namespace

TEST(CudaTensorList, ChunksAreAsLargeAsTheListAllows) {
    struct Case {
        std::vector<std::int64_t> shape;
        int groups;
        std::size_t chunks;
    };
    const Case cases[] = {{{32}, 64, 1},
                          {{768, 768}, 64, 288},
                          {{1024, 1024}, 64, 512},
                          {{131071, 32}, 64, 2048},
                          {{131072, 32}, 128, 1024},
                          {{262143, 32}, 128, 2048},
                          {{262144, 32}, 256, 1024},
                          {{524287, 32}, 256, 2048},
                          {{524288, 32}, 512, 1024},
                          {{4096, 6144}, 512, 1536},
                          {{131072, 65536}, 512, 524288}};
    for (const auto& c : cases) {
        DeviceTensorList list;
        set(list, Items({c.shape}));
        EXPECT_EQ(list.groups_in_chunk(), c.groups) << c.shape[0];
        EXPECT_EQ(list.chunks().size(), c.chunks) << c.shape[0];
        expect_cut(list);
    }
}

TEST(CudaTensorList, TensorsOfOneListHaveChunksOfOneSize) {
    DeviceTensorList list;
    set(list, Items({{2, 70000}, {0, 7}, {300000, 9}, {33}, {7}}));
    EXPECT_EQ(list.groups_in_chunk(), 256);
    expect_cut(list);
}

// The size follows from the whole list: with a tensor more or less the chunks of all others are cut
// anew, and must be uploaded.
TEST(CudaTensorList, ChunksFollowTheSizeOfTheList) {
    const std::vector<std::vector<std::int64_t>> small = {{1000, 100}, {77, 77}};
    const Items first(small), elsewhere(small);
    DeviceTensorList list;
    set(list, first);
    EXPECT_TRUE(list.chunks_changed());
    EXPECT_EQ(list.groups_in_chunk(), 64);
    const auto chunks = list.chunks().size();

    set(list, elsewhere);
    EXPECT_TRUE(list.tensors_changed());
    EXPECT_FALSE(list.chunks_changed());
    EXPECT_EQ(list.groups_in_chunk(), 64);

    auto large = small;
    large.push_back({524288, 32});
    set(list, Items(large));
    EXPECT_TRUE(list.chunks_changed());
    EXPECT_EQ(list.groups_in_chunk(), 512);
    expect_cut(list);
    auto refused = Items(small);
    refused.items[1].gradient = nullptr;
    EXPECT_THROW(set(list, refused), InvalidArgument);
    EXPECT_EQ(list.groups_in_chunk(), 512);

    set(list, Items(small));
    EXPECT_TRUE(list.chunks_changed());
    EXPECT_EQ(list.groups_in_chunk(), 64);
    EXPECT_EQ(list.chunks().size(), chunks);
    expect_cut(list);
}

}  // namespace flashoptim::cuda
