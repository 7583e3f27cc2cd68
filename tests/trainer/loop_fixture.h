// A tiny run on text made here, and an observer that remembers what it reports. Asserts nothing.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "temporary_folder.h"
#include "trainer/checkpoint_list.h"
#include "trainer/loop.h"

namespace flashoptim::trainer {

// Sentences with structure to learn, 20 kB, made here so that no test depends on a file.
inline std::string corpus() {
    const std::vector<std::string> subjects = {"the cat", "a dog", "my neighbour", "the old captain"};
    const std::vector<std::string> verbs = {" sees ", " follows ", " forgets ", " paints "};
    const std::vector<std::string> objects = {"the sea", "a red ball", "the quiet street", "some bread"};
    std::string text;
    std::uint32_t state = 1;
    const auto next = [&](std::size_t count) {
        state = state * 1664525U + 1013904223U;
        return (state >> 16) % count;
    };
    while (text.size() < 20'000) {
        text += subjects[next(4)];
        text += verbs[next(4)];
        text += objects[next(4)] + ".\n";
    }
    return text;
}

inline std::int64_t newest_checkpoint_step(const std::filesystem::path& out) {
    const auto found = list_checkpoints(out / kCheckpointsName);
    return found.empty() ? 0 : found.back().step;
}

struct Killed : std::runtime_error {
    Killed() : std::runtime_error("killed") {}
};

// Keeps what a run reports, and can end it: by asking it to stop or as a kill would.
class Recorder : public TrainObserver {
public:
    void on_start(const RunInfo& info) override { start = info; }
    void on_step(const StepRecord& record) override {
        steps.push_back(record);
        if (record.step == killed_in_step) {
            throw Killed();
        }
    }
    void on_checkpoint(const CheckpointRecord& record) override { checkpoints.push_back(record); }
    void on_notice(const std::string& line) override { notices.push_back(line); }
    bool stop_requested() override { return !steps.empty() && steps.back().step == stop_after; }

    std::int64_t killed_in_step = 0;
    std::int64_t stop_after = 0;
    RunInfo start;
    std::vector<StepRecord> steps;
    std::vector<CheckpointRecord> checkpoints;
    std::vector<std::string> notices;
};

class Loop : public testing::Test {
protected:
    Loop() : data_(folder_.write("corpus.txt", corpus())) {}

    TrainOptions tiny_run(const std::string& out = {}) const {
        TrainOptions options;
        options.model.preset = "llama-tiny";
        options.data.path = data_;
        options.schedule.total_steps = 20;
        options.schedule.warmup_steps = 4;
        options.schedule.peak = 1e-2;
        options.batch_size = 4;
        options.sequence_length = 16;
        options.evaluation_interval = 5;
        options.evaluation_batches = 2;
        options.threads = 1;
        if (!out.empty()) {
            options.out = folder_.path() / out;
        }
        return options;
    }

    TemporaryFolder folder_;
    std::filesystem::path data_;
};

// metrics.csv without the columns that depend on the clock and the memory of the process.
inline std::string comparable_metrics(const std::filesystem::path& out) {
    std::istringstream file(read_all(out / "metrics.csv"));
    std::string line;
    std::string kept;
    while (std::getline(file, line)) {
        std::size_t end = 0;
        for (int column = 0; column < 6; ++column) {
            end = line.find(',', end) + 1;
        }
        kept += line.substr(0, end) + "\n";
    }
    return kept;
}

}  // namespace flashoptim::trainer
