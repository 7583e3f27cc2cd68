// What a step computes with beside its tensors. Kept by the thread pool from step to step, so that a step allocates nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "step/kernels.h"
#include "step/rows.h"

namespace flashoptim {

/// What items of the same kind have in common.
struct ItemKind {
    StepScalars scalars;
    const DitherTables* dither = nullptr;
    std::uint64_t (*kernel)(const Segment&) = nullptr;
    std::uint64_t (*reference)(const Segment&) = nullptr;
};

struct PreparedItem {
    StepItem* item = nullptr;
    Rows rows;
    std::size_t kind = 0;
};

/// A part of one tensor: whole rows, or a piece of one row that begins with a group.
struct Chunk {
    std::size_t item;
    std::int64_t begin, end;
};

struct Workspace {
    std::vector<PreparedItem> items;
    std::vector<ItemKind> kinds;
    std::vector<Chunk> chunks;
    std::vector<std::size_t>
        jobs;  // the first chunk of each, and the end: chunks are handed out by the piece of work
    std::vector<double> sums;        // of each chunk's gradients
    std::uint64_t bad_elements = 0;  // of all items
    std::vector<std::int64_t> dither_steps;
    std::vector<std::unique_ptr<DitherTables>> dither;  // of dither_steps; more are kept for later

    void clear() {
        items.clear();
        kinds.clear();
        chunks.clear();
        jobs.clear();
        sums.clear();
        bad_elements = 0;
        dither_steps.clear();
    }
    /// Looked for among the last few only: there may be as many step counts as tensors, and then each has tables of its own.
    const DitherTables* dither_of(std::int64_t step) {
        constexpr std::size_t kSearched = 16;
        for (auto n = dither_steps.size() - std::min(dither_steps.size(), kSearched); n < dither_steps.size();
             ++n) {
            if (dither_steps[n] == step) return dither[n].get();
        }
        if (dither.size() == dither_steps.size()) dither.push_back(std::make_unique<DitherTables>());
        auto* tables = dither[dither_steps.size()].get();
        fill_dither_tables(*tables, step);
        dither_steps.push_back(step);
        return tables;
    }
};

}  // namespace flashoptim
