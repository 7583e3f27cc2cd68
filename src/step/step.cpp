// The step of a list of tensors. Scalars are computed once for each kind of item and dither tables once for
// each step count. Then the threads share one flat list of chunks of all tensors.
#include "flashoptim/step.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "step/dispatch.h"
#include "step/float_environment.h"
#include "step/item_checks.h"
#include "step/scalars.h"
#include "step/workspace.h"

namespace flashoptim {

namespace {

/// Elements of a segment whose directions are written to the stack. A multiple of the dither period, and
/// small enough for the L1 cache.
constexpr std::int64_t kDirectionPart = 2048;
/// Elements of a job. Large enough to hide the cost of taking a job, small enough to share a tensor out
/// evenly.
constexpr std::int64_t kChunkSize = 1 << 15;
/// Elements of a job of the norm. It is larger because a norm only reads and is far faster, and long
/// sequential reads are faster.
constexpr std::int64_t kNormJob = 1 << 19;

std::byte* advance(void* buffer, std::int64_t count, DType dtype) {
    if (buffer == nullptr) return nullptr;
    return static_cast<std::byte*>(buffer) + count * static_cast<std::int64_t>(size_of(dtype));
}

void describe(Segment& s, const Workspace& work, const PreparedItem& prepared, std::int64_t begin,
              std::int64_t count) {
    const auto& kind = work.kinds[prepared.kind];
    const auto& item = *prepared.item;
    const auto& layout = *item.layout;
    std::int64_t group = 0, index = layout.row_offset * layout.whole_row_length + layout.column_offset;
    if (begin != 0) {  // skipped for the first segment: most tensors are small and have one
        const auto row = begin / prepared.rows.length, column = begin % prepared.rows.length;
        group = row * prepared.rows.groups + column / kGroupSize;
        index += begin / layout.row_length * layout.whole_row_length + begin % layout.row_length;
    }
    const auto scale_at = [&](void* scales) {
        return scales == nullptr ? nullptr : static_cast<std::uint16_t*>(scales) + group;
    };
    s.weight = advance(item.weight, begin, item.plan.weight_dtype);
    s.correction = advance(item.state.at(kCorrectionPlace), begin, item.plan.correction().dtype);
    for (int n = 0; n < kMaxMoments; ++n) {
        s.codes[n] = advance(item.state.at(codes_place(n)), begin, item.plan.codes(n).dtype);
        s.scales[n] = scale_at(item.state.at(scales_place(n)));
    }
    s.direction = advance(item.direction, begin, item.direction_dtype);
    s.direction_dtype = item.direction_dtype;
    if (work.call == Call::kApplyUpdate) {
        s.gradient = s.direction;
        s.gradient_dtype = item.direction_dtype;
        s.gradient_factor = 1.0F;
    } else {
        s.gradient = static_cast<const std::byte*>(item.gradient) +
                     begin * static_cast<std::int64_t>(size_of(item.gradient_dtype));
        s.gradient_dtype = item.gradient_dtype;
        s.gradient_factor = item.hyperparameters.maximize ? -item.gradient_factor : item.gradient_factor;
    }
    s.check_gradient = item.check_gradient || !item.plan.paper_arithmetic;
    s.place = static_cast<std::uint32_t>(index % kDitherPeriod);
    s.count = count;
    s.following = nullptr;
    s.scalars = &kind.scalars;
    s.dither = kind.dither;
    s.reference = kind.reference;
}

/// Whether update_moments() writes directions straight into the caller's buffer.
bool writes_in_place(const ItemKind& kind, DType direction) {
    return kind.decode_weights == nullptr && direction == DType::kFloat32;
}

/// Iterates over the segments of a job.
class Segments {
public:
    Segments(const Workspace& work, std::size_t first_chunk, std::size_t end)
        : work_(work), chunk_(first_chunk), end_(end) {}

    /// Fills in the next segment and returns its item, or null at the end.
    const PreparedItem* take(Segment& segment) {
        if (chunk_ == end_) return nullptr;
        const auto& chunk = work_.chunks[chunk_];
        const auto& prepared = work_.items[chunk.item];
        const auto begin = chunk.begin + done_;
        const auto column = begin == 0 ? 0 : begin % prepared.rows.length;
        auto count = std::min(chunk.end - begin, prepared.rows.length - column);
        if (work_.call == Call::kUpdateMoments) {
            const bool in_place = writes_in_place(work_.kinds[prepared.kind], prepared.item->direction_dtype);
            if (!in_place) count = std::min(count, kDirectionPart);
            describe(segment, work_, prepared, begin, count);
            if (in_place) segment.weight = segment.direction;
        } else {
            describe(segment, work_, prepared, begin, count);
        }
        done_ += count;
        if (chunk.begin + done_ == chunk.end) {
            ++chunk_;
            done_ = 0;
        }
        return &prepared;
    }

private:
    const Workspace& work_;
    std::size_t chunk_, end_;
    std::int64_t done_ = 0;  // elements of the chunk that were taken
};

void add_bad(std::uint64_t& count, std::uint64_t bad) {
    __atomic_fetch_add(&count, bad, __ATOMIC_RELAXED);  // std::atomic_ref needs libc++ 19
}

/// The first pass over a segment. Returns the number of bad elements.
std::uint64_t write_directions(const ItemKind& kind, Segment& s, StoreBfloat16 store) {
    if (writes_in_place(kind, s.direction_dtype)) return kind.kernel(s);
    alignas(64) float directions[kDirectionPart];
    // Prefetches the next part of the direction buffer. The kernel prefetches its own inputs.
    const auto part = kDirectionPart * static_cast<std::int64_t>(size_of(s.direction_dtype));
    for (std::int64_t at = part; at < 2 * part; at += 64) {
        __builtin_prefetch(static_cast<const std::byte*>(s.direction) + at, 1);
    }
    if (kind.decode_weights != nullptr) kind.decode_weights(s, directions);
    s.weight = directions;
    const auto bad = kind.kernel(s);
    if (s.direction_dtype == DType::kFloat32) {
        std::memcpy(s.direction, directions, static_cast<std::size_t>(s.count) * sizeof directions[0]);
    } else {
        store(directions, static_cast<std::uint16_t*>(s.direction), s.count);
    }
    return bad;
}

/// Calls run(kind, segment) for the segments of a job.
template <class Run>
void step_job(Workspace& work, std::size_t job, const Run& run) {
    Segments segments(work, work.jobs[job], work.jobs[job + 1]);
    std::array<Segment, 2> both;  // used alternately: a copy would stall on store forwarding
    auto *segment = &both[0], *following = &both[1];
    const auto* item = segments.take(*segment);
    while (item != nullptr) {
        const auto* const next_item = segments.take(*following);
        if (next_item != nullptr && next_item->kind == item->kind) segment->following = following;
        const auto bad = run(work.kinds[item->kind], *segment);
        if (bad != 0) {
            add_bad(item->item->bad_elements, bad);
            add_bad(work.bad_elements, bad);
        }
        std::swap(segment, following);
        item = next_item;
    }
}

/// Adds a chunk to the current job and ends the job if it has reached job_size.
void add_chunk(Workspace& work, std::size_t item, std::int64_t begin, std::int64_t end, std::int64_t& in_job,
               std::int64_t job_size = kChunkSize) {
    work.chunks.push_back({item, begin, end});
    in_job += end - begin;
    if (in_job >= job_size) {
        work.jobs.push_back(work.chunks.size());
        in_job = 0;
    }
}

void cut(Workspace& work, std::size_t item, const Rows& rows, std::int64_t numel, std::int64_t& in_job) {
    if (rows.length < kChunkSize) {
        const auto rows_in_chunk = kChunkSize / rows.length * rows.length;
        for (std::int64_t at = 0; at < numel; at += rows_in_chunk) {
            add_chunk(work, item, at, std::min(numel, at + rows_in_chunk), in_job);
        }
        return;
    }
    for (std::int64_t row = 0; row < numel; row += rows.length) {
        for (std::int64_t at = row; at < row + rows.length; at += kChunkSize) {
            add_chunk(work, item, at, std::min(row + rows.length, at + kChunkSize), in_job);
        }
    }
}

bool has_moments_of_rule(const StepItem& item) {
    const auto moments = traits_of(item.rule).moments;
    for (std::size_t n = 0; n < kMaxMoments; ++n) {
        const bool is_there = item.plan.codes(static_cast<int>(n)).count != 0;
        const bool may_be = n < moments.size(), must_be = may_be && moments[n].needs == nullptr;
        if (is_there ? !may_be : must_be) return false;
    }
    return true;
}

void close_jobs(Workspace& work) {
    if (work.jobs.back() != work.chunks.size()) work.jobs.push_back(work.chunks.size());
}

}  // namespace

/// One call over a list of items: prepares them, then runs their chunks on the threads.
struct StepRun {
    explicit StepRun(ThreadPool& pool) : lease_(pool) {
        work_ = lease_.workspace();
        if (work_ == nullptr) work_ = &own_.emplace();
        work_->clear();
        work_->jobs.push_back(0);
    }

    std::uint64_t run(std::span<StepItem> items, Backend backend, Call call) {
        const auto& kernels = backend_kernels(backend);
        const auto& reference = backend_kernels(Backend::kScalar);
        work_->call = call;
        const StepItem* former = nullptr;
        std::int64_t in_job = 0;
        for (std::size_t n = 0; n < items.size(); ++n) {
            auto& item = items[n];
            check_item(item, n, call);
            item.bad_elements = 0;
            if (item.layout->numel == 0) continue;
            const bool is_alike = former != nullptr && same_kind(*former, item) &&
                                  (call != Call::kApplyUpdate || former->update == item.update);
            if (!is_alike) add_kind(item, n, kernels, reference);
            former = &item;
            work_->items.push_back({&item, rows_of(item), work_->kinds.size() - 1});
            cut(*work_, work_->items.size() - 1, work_->items.back().rows, item.layout->numel, in_job);
        }
        close_jobs(*work_);
        if (call == Call::kUpdateMoments) {
            for (const auto& prepared : work_->items) {
                const auto& scalars = work_->kinds[prepared.kind].scalars;
                prepared.item->update = {scalars.learning_rate, scalars.weight_factor};
            }
            store_bfloat16_ = kernels.store_bfloat16;
            run_jobs([](void* context, std::int64_t n) {
                const auto& self = *static_cast<StepRun*>(context);
                step_job(*self.work_, static_cast<std::size_t>(n),
                         [&self](const ItemKind& kind, Segment& segment) {
                             return write_directions(kind, segment, self.store_bfloat16_);
                         });
            });
        } else {
            run_jobs([](void* context, std::int64_t n) {
                step_job(*static_cast<StepRun*>(context)->work_, static_cast<std::size_t>(n),
                         [](const ItemKind& kind, const Segment& segment) { return kind.kernel(segment); });
            });
        }
        return work_->bad_elements;
    }

    double norm(std::span<const StepItem> items, Backend backend) {
        struct Context {
            Workspace& work;
            std::span<const StepItem> items;
            SumOfSquares sum_of_squares;
        } context{*work_, items, backend_kernels(backend).sum_of_squares};
        std::int64_t in_job = 0;
        for (std::size_t n = 0; n < items.size(); ++n) {
            check_gradient(items[n], n);
            const auto numel = items[n].layout->numel;
            for (std::int64_t at = 0; at < numel; at += kNormBlock) {
                add_chunk(*work_, n, at, std::min(numel, at + kNormBlock), in_job, kNormJob);
            }
        }
        close_jobs(*work_);
        work_->sums.resize(work_->chunks.size());
        ThreadPool::run_jobs(
            lease_, static_cast<std::int64_t>(work_->jobs.size()) - 1,
            [](void* c, std::int64_t n) {
                const auto& [w, all, sum_of_squares] = *static_cast<Context*>(c);
                const auto job = static_cast<std::size_t>(n);
                for (auto at = w.jobs[job]; at < w.jobs[job + 1]; ++at) {
                    const auto& block = w.chunks[at];
                    const auto& item = all[block.item];
                    const auto* from = static_cast<const std::byte*>(item.gradient) +
                                       block.begin * static_cast<std::int64_t>(size_of(item.gradient_dtype));
                    w.sums[at] = sum_of_squares(from, item.gradient_dtype, item.gradient_factor,
                                                block.end - block.begin);
                }
            },
            &context);
        std::array<double, kNormTotals> totals{};
        for (std::size_t n = 0; n < work_->sums.size(); ++n) totals[n % totals.size()] += work_->sums[n];
        return double_sqrt(std::accumulate(totals.begin(), totals.end(), 0.0));
    }

private:
    /// Adds the scalars, dither and kernels that this item shares with all items of its kind.
    void add_kind(const StepItem& item, std::size_t index, const BackendKernels& kernels,
                  const BackendKernels& reference) {
        const auto own = kernels.find(item.rule, item.plan), scalar = reference.find(item.rule, item.plan);
        ItemKind kind;
        kind.scalars = scalars_of(ScalarSource(item));
        Kernel Kernels::* which = &Kernels::run;
        switch (work_->call) {
            case Call::kStep:
                break;
            case Call::kCountBad:
                which = &Kernels::count_bad;
                break;
            case Call::kUpdateMoments:
                which = reads_weights(item) ? &Kernels::replace_by_directions : &Kernels::update_moments;
                if (reads_weights(item)) kind.decode_weights = own.decode_weights;
                break;
            case Call::kApplyUpdate:
                which = &Kernels::apply_update;
                kind.scalars = {};
                kind.scalars.learning_rate = item.update.learning_rate;
                kind.scalars.weight_factor = item.update.weight_factor;
                break;
        }
        // Only calls that use the moments need a state that fits the rule.
        const bool uses_moments = work_->call == Call::kStep || work_->call == Call::kUpdateMoments;
        if (own.run == nullptr || (uses_moments && !has_moments_of_rule(item))) refuse_plan(index);
        kind.kernel = own.*which;
        kind.reference = scalar.*which;
        if (kind.kernel == nullptr) refuse_two_passes(index);
        kind.dither = work_->dither_of(item.step, item.rule);
        work_->kinds.push_back(kind);
    }

    void run_jobs(void (*job)(void*, std::int64_t)) {
        ThreadPool::run_jobs(lease_, static_cast<std::int64_t>(work_->jobs.size()) - 1, job, this);
    }

    const DefaultFloatEnvironment exact_;
    const ThreadPool::Lease lease_;
    std::optional<Workspace> own_;  // used while the pool serves another caller
    Workspace* work_ = nullptr;
    StoreBfloat16 store_bfloat16_ = nullptr;
};

std::uint64_t step(std::span<StepItem> items, ThreadPool& pool, Backend backend) {
    return StepRun(pool).run(items, backend, Call::kStep);
}

std::uint64_t update_moments(std::span<StepItem> items, ThreadPool& pool, Backend backend) {
    return StepRun(pool).run(items, backend, Call::kUpdateMoments);
}

std::uint64_t apply_update(std::span<StepItem> items, ThreadPool& pool, Backend backend) {
    return StepRun(pool).run(items, backend, Call::kApplyUpdate);
}

std::uint64_t count_bad_gradients(std::span<StepItem> items, ThreadPool& pool, Backend backend) {
    return StepRun(pool).run(items, backend, Call::kCountBad);
}

double grad_norm(std::span<const StepItem> items, ThreadPool& pool, Backend backend) {
    return StepRun(pool).norm(items, backend);
}

}  // namespace flashoptim
