// What a person sees of a run: a progress bar on a terminal, plain lines otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "trainer/progress.h"

namespace flashoptim::app {

/// "1.2 GiB", "340 KiB".
std::string human_bytes(std::int64_t bytes);

/// Shows a run on stderr, and ends it with its checkpoint at the first SIGINT or SIGTERM.
class ConsoleObserver : public trainer::TrainObserver {
public:
    /// `label` stands before every line, "adamw native" for example.
    explicit ConsoleObserver(std::string label);
    ~ConsoleObserver() override;
    ConsoleObserver(const ConsoleObserver&) = delete;
    ConsoleObserver& operator=(const ConsoleObserver&) = delete;

    void on_start(const trainer::RunInfo& info) override;
    void on_step(const trainer::StepRecord& record) override;
    void on_checkpoint(const trainer::CheckpointRecord& record) override;
    void on_notice(const std::string& line) override;
    bool stop_requested() override;

private:
    void clear_bar();

    std::string label_;
    bool terminal_;
    bool bar_shown_ = false;
    trainer::RunInfo info_;
    std::chrono::steady_clock::time_point start_, last_shown_;
    std::string validation_;
};

}  // namespace flashoptim::app
