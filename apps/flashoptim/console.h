// Output for people: results on stdout, and on stderr a progress bar (terminal) or plain lines (otherwise).
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "stop_signals.h"
#include "trainer/human_bytes.h"
#include "trainer/progress.h"

namespace flashoptim::app {

/// The clipping as text: "gradients clipped at norm 1".
std::string clipping(double norm);

/// Writes progress, notes and errors to stderr. Never throws if stderr cannot be written, because messages
/// must not end a run.
void tell(std::string_view text) noexcept;
template <typename... Values>
void tell(fmt::format_string<Values...> form, Values&&... values) {
    tell(std::string_view(fmt::format(form, std::forward<Values>(values)...)));
}

/// Writes results to stdout. finish_output() checks once whether they were written.
void print(std::string_view text) noexcept;
template <typename... Values>
void print(fmt::format_string<Values...> form, Values&&... values) {
    print(std::string_view(fmt::format(form, std::forward<Values>(values)...)));
}

/// Throws IoError if any output to stdout was lost.
void finish_output();

/// Shows a run on stderr. At the first signal that asks the program to stop, it ends the run with a
/// checkpoint. The run goes on if the reader of stderr goes away.
class ConsoleObserver : public trainer::TrainObserver {
public:
    /// `label` begins every line, for example "adamw native".
    explicit ConsoleObserver(std::string label);
    ~ConsoleObserver() override;
    ConsoleObserver(const ConsoleObserver&) = delete;
    ConsoleObserver& operator=(const ConsoleObserver&) = delete;

    void on_start(const trainer::RunInfo& info) override;
    void on_step(const trainer::StepRecord& record) override;
    void on_checkpoint(const trainer::CheckpointRecord& record) override;
    void on_notice(const std::string& line) override;
    bool stop_requested() override;

    /// Whether the first step has begun, so that all checks before it have passed.
    bool started() const { return started_; }

private:
    void clear_bar();

    StopSignals signals_;
    std::string label_;
    bool terminal_;
    bool started_ = false;
    bool bar_shown_ = false;
    trainer::RunInfo info_;
    std::chrono::steady_clock::time_point start_, last_shown_;
    std::string validation_;
};

}  // namespace flashoptim::app
