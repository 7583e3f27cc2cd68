// The step of a list of tensors: scalars once for each tensor, dither tables once for each step count, then one flat list of
// chunks over all tensors for the threads.
#include "flashoptim/step.h"

#include <algorithm>
#include <map>

#include "flashoptim/format/native_states.h"
#include "flashoptim/format/paper.h"
#include "flashoptim/rule/adam.h"
#include "flashoptim/rule/lion.h"
#include "flashoptim/rule/sgd.h"
#include "step/dispatch.h"

namespace flashoptim {

namespace {

/// Elements that one thread takes at a time: large against the cost of taking them, small against a tensor.
constexpr std::int64_t kChunkSize = 1 << 15;
/// Elements in each block of the gradient norm.
constexpr std::int64_t kNormBlock = 1 << 14;

template <class R, class PaperR>
StepScalars scalars_of(const StepItem& item, Decay decay) {
    const auto& h = item.hyperparameters;
    if (item.plan.paper_arithmetic) return PaperR::template scalars<Float32Moments>(h, item.step, decay);
    if (item.plan.moments == MomentStorage::kNative) {
        return R::template scalars<NativeMoments>(h, item.step, decay);
    }
    return R::template scalars<Float32Moments>(h, item.step, decay);
}

StepScalars scalars_of(const StepItem& item) {
    switch (item.rule) {
        case Rule::kSGD:
        case Rule::kSGDW: {
            const auto decay = item.rule == Rule::kSGD ? Decay::kCoupled : Decay::kDecoupled;
            auto scalars = item.hyperparameters.momentum != 0.0
                               ? scalars_of<SgdRule<true>, PaperSgdRule<true>>(item, decay)
                               : scalars_of<SgdRule<false>, PaperSgdRule<false>>(item, decay);
            scalars.has_momentum = item.has_momentum;
            return scalars;
        }
        case Rule::kAdam:
            return scalars_of<AdamRule, PaperAdamRule>(item, Decay::kCoupled);
        case Rule::kAdamW:
            return scalars_of<AdamRule, PaperAdamRule>(item, Decay::kDecoupled);
        case Rule::kLion:
            return scalars_of<LionRule, PaperLionRule>(item, Decay::kDecoupled);
    }
    return {};
}

/// Rows as the kernels see them: several rows are one run where groups and indices go on without a break.
struct Rows {
    std::int64_t length;
    std::int64_t groups;  // in one row

    explicit Rows(const StepItem& item) {
        const auto& layout = *item.layout;
        const bool indices_go_on =
            layout.row_length == layout.whole_row_length || item.plan.moments == MomentStorage::kPaper;
        const bool groups_go_on =
            item.plan.moments != MomentStorage::kNative || layout.row_length % kGroupSize == 0;
        length = indices_go_on && groups_go_on ? layout.numel : layout.row_length;
        groups = (length + kGroupSize - 1) / kGroupSize;
    }
};

/// A part of one tensor: whole rows, or a piece of one row that begins with a group.
struct Chunk {
    std::size_t item;
    std::int64_t begin, end;
};

struct PreparedItem {
    StepItem* item = nullptr;
    Rows rows;
    Kernels kernels;
    StepScalars scalars;
    const DitherTables* dither = nullptr;
    std::uint64_t (*reference)(const Segment&) = nullptr;
};

struct Work {
    std::vector<PreparedItem> items;
    std::vector<Chunk> chunks;
    std::vector<std::uint64_t> bad;  // of each chunk
    std::map<std::int64_t, std::unique_ptr<DitherTables>> dither;
    std::uint64_t (*Kernels::*kernel)(const Segment&) = nullptr;
};

std::byte* advance(void* buffer, std::int64_t count, DType dtype) {
    if (buffer == nullptr) return nullptr;
    return static_cast<std::byte*>(buffer) + count * static_cast<std::int64_t>(size_of(dtype));
}

Segment segment_of(const PreparedItem& prepared, std::int64_t begin, std::int64_t count) {
    const auto& item = *prepared.item;
    const auto& layout = *item.layout;
    const auto row = begin / prepared.rows.length, column = begin % prepared.rows.length;
    const auto group = row * prepared.rows.groups + column / kGroupSize;
    const auto scale_at = [&](void* scales) {
        return scales == nullptr ? nullptr : static_cast<std::uint16_t*>(scales) + group;
    };
    const auto index = (layout.row_offset + begin / layout.row_length) * layout.whole_row_length +
                       layout.column_offset + begin % layout.row_length;
    Segment s;
    s.weight = advance(item.weight, begin, item.plan.weight_dtype);
    s.correction = advance(item.state.correction, begin, item.plan.correction.dtype);
    s.first = advance(item.state.first, begin, item.plan.first.dtype);
    s.second = advance(item.state.second, begin, item.plan.second.dtype);
    s.first_scales = scale_at(item.state.first_scales);
    s.second_scales = scale_at(item.state.second_scales);
    s.gradient = static_cast<const std::byte*>(item.gradient) +
                 begin * static_cast<std::int64_t>(size_of(item.gradient_dtype));
    s.gradient_dtype = item.gradient_dtype;
    s.gradient_factor = item.hyperparameters.maximize ? -item.gradient_factor : item.gradient_factor;
    s.check_gradient = item.check_gradient || !item.plan.paper_arithmetic;
    s.place = static_cast<std::uint32_t>(index % kDitherPeriod);
    s.count = count;
    s.scalars = &prepared.scalars;
    s.dither = prepared.dither;
    s.reference = prepared.reference;
    return s;
}

void run_chunk(void* context, std::int64_t n) {
    auto& work = *static_cast<Work*>(context);
    const auto& chunk = work.chunks[static_cast<std::size_t>(n)];
    const auto& prepared = work.items[chunk.item];
    const auto kernel = prepared.kernels.*work.kernel;
    std::uint64_t bad = 0;
    for (auto at = chunk.begin; at < chunk.end;) {
        const auto left_in_row = prepared.rows.length - at % prepared.rows.length;
        const auto count = std::min(chunk.end - at, left_in_row);
        bad += kernel(segment_of(prepared, at, count));
        at += count;
    }
    work.bad[static_cast<std::size_t>(n)] = bad;
}

void cut(std::vector<Chunk>& chunks, std::size_t item, const Rows& rows, std::int64_t numel) {
    if (rows.length < kChunkSize) {
        const auto rows_in_chunk = kChunkSize / rows.length * rows.length;
        for (std::int64_t at = 0; at < numel; at += rows_in_chunk) {
            chunks.push_back({item, at, std::min(numel, at + rows_in_chunk)});
        }
        return;
    }
    for (std::int64_t row = 0; row < numel; row += rows.length) {
        for (auto at = row; at < row + rows.length; at += kChunkSize) {
            chunks.push_back({item, at, std::min(row + rows.length, at + kChunkSize)});
        }
    }
}

std::uint64_t run(std::span<StepItem> items, ThreadPool& pool, Backend backend,
                  std::uint64_t (*Kernels::*kernel)(const Segment&)) {
    const auto& backend_kernel = backend_kernels(backend);
    Work work;
    work.kernel = kernel;
    for (auto& item : items) {
        item.bad_elements = 0;
        if (item.layout->numel == 0) continue;
        PreparedItem prepared{&item, Rows(item), {}, scalars_of(item), nullptr, nullptr};
        prepared.reference =
            backend_kernels(Backend::kScalar).find(item.rule, item.plan.first.count != 0, item.plan).run;
        prepared.kernels = backend_kernel.find(item.rule, item.plan.first.count != 0, item.plan);
        auto& tables = work.dither[item.step];
        if (!tables) {
            tables = std::make_unique<DitherTables>();
            fill_dither_tables(*tables, item.step);
        }
        prepared.dither = tables.get();
        cut(work.chunks, work.items.size(), prepared.rows, item.layout->numel);
        work.items.push_back(prepared);
    }
    work.bad.resize(work.chunks.size());
    pool.run(static_cast<std::int64_t>(work.chunks.size()), &run_chunk, &work);

    std::uint64_t total = 0;
    for (std::size_t n = 0; n < work.chunks.size(); ++n) {
        work.items[work.chunks[n].item].item->bad_elements += work.bad[n];
        total += work.bad[n];
    }
    return total;
}

}  // namespace

void step(std::span<StepItem> items, ThreadPool& pool, Backend backend) {
    run(items, pool, backend, &Kernels::run);
}

std::uint64_t count_bad_gradients(std::span<StepItem> items, ThreadPool& pool) {
    return run(items, pool, Backend::kAutomatic, &Kernels::count_bad);
}

double grad_norm(std::span<const StepItem> items, ThreadPool& pool) {
    struct Sums {
        std::span<const StepItem> items;
        SumOfSquares sum_of_squares;
        std::vector<Chunk> blocks;
        std::vector<double> sums;
    } work{items, backend_kernels(Backend::kAutomatic).sum_of_squares, {}, {}};
    for (std::size_t n = 0; n < items.size(); ++n) {
        const auto numel = items[n].layout->numel;
        for (std::int64_t at = 0; at < numel; at += kNormBlock) {
            work.blocks.push_back({n, at, std::min(numel, at + kNormBlock)});
        }
    }
    work.sums.resize(work.blocks.size());
    pool.run(
        static_cast<std::int64_t>(work.blocks.size()),
        [](void* context, std::int64_t n) {
            auto& sums = *static_cast<Sums*>(context);
            const auto& block = sums.blocks[static_cast<std::size_t>(n)];
            const auto& item = sums.items[block.item];
            const auto* from = static_cast<const std::byte*>(item.gradient) +
                               block.begin * static_cast<std::int64_t>(size_of(item.gradient_dtype));
            sums.sums[static_cast<std::size_t>(n)] =
                sums.sum_of_squares(from, item.gradient_dtype, item.gradient_factor, block.end - block.begin);
        },
        &work);
    double total = 0.0;
    for (const double sum : work.sums) total += sum;
    return double_sqrt(total);
}

}  // namespace flashoptim
