// The temporary data of a step. The thread pool keeps it from step to step, so that a step allocates nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "step/item_checks.h"
#include "step/kernels.h"
#include "step/rows.h"

namespace flashoptim {

/// The common data of items of the same kind.
struct ItemKind {
    StepScalars scalars;
    const DitherTables* dither = nullptr;
    Kernel kernel = nullptr, reference = nullptr;
    DecodeWeights decode_weights = nullptr;  // set for update_moments() if it reads weights
};

struct PreparedItem {
    StepItem* item = nullptr;
    Rows rows;
    std::size_t kind = 0;
};

/// A part of one tensor: whole rows, or a part of one row that begins with a group.
struct Chunk {
    std::size_t item;
    std::int64_t begin, end;
};

struct Workspace {
    Call call = Call::kStep;
    std::vector<PreparedItem> items;
    std::vector<ItemKind> kinds;
    std::vector<Chunk> chunks;
    std::vector<std::size_t> jobs;   // index of the first chunk of each job, and the end
    std::vector<double> sums;        // sum of squares of each chunk
    std::uint64_t bad_elements = 0;  // sum over all items
    /// The key of dither tables. Rules with the same kinds of moments share tables.
    struct DitherUse {
        std::int64_t step;
        std::span<const MomentTraits> moments;
        [[nodiscard]] bool is(std::int64_t other, std::span<const MomentTraits> others) const {
            return step == other &&
                   std::ranges::equal(moments, others, {}, &MomentTraits::kind, &MomentTraits::kind);
        }
    };
    std::vector<DitherUse> dither_uses;
    std::vector<std::unique_ptr<DitherTables>> dither;  // tables of dither_uses; spare tables follow

    void clear() {
        items.clear();
        kinds.clear();
        chunks.clear();
        jobs.clear();
        sums.clear();
        bad_elements = 0;
        dither_uses.clear();
    }
    /// The dither tables of a step count and a rule. Only the last kSearched keys are searched: there may be
    /// as many step counts as tensors, and a full search would take quadratic time.
    const DitherTables* dither_of(std::int64_t step, Rule rule) {
        constexpr std::size_t kSearched = 16;
        const auto moments = traits_of(rule).moments;
        for (auto n = dither_uses.size() - std::min(dither_uses.size(), kSearched); n < dither_uses.size();
             ++n) {
            if (dither_uses[n].is(step, moments)) return dither[n].get();
        }
        if (dither.size() == dither_uses.size()) dither.push_back(std::make_unique<DitherTables>());
        auto* tables = dither[dither_uses.size()].get();
        MomentKind wanted[kMaxMoments] = {};
        for (std::size_t n = 0; n < moments.size(); ++n) wanted[n] = moments[n].kind;
        fill_dither_tables(*tables, step, wanted, static_cast<int>(moments.size()));
        dither_uses.push_back({step, moments});
        return tables;
    }
};

}  // namespace flashoptim
