// Output that never throws, the progress bar and the plain lines.
#include "console.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "flashoptim/error.h"
#include "flashoptim/system/one_line.h"
#include "process_setup.h"

namespace flashoptim::app {
namespace {

constexpr int kBarWidth = 24;
constexpr auto kBarInterval = std::chrono::milliseconds(100);
constexpr auto kLineInterval = std::chrono::seconds(10);

int stdout_error = 0;  // of the first write that failed

std::string human_seconds(double seconds) {
    const auto whole = static_cast<std::int64_t>(seconds + 0.5);
    if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string bar(double done) {
    const int full = std::clamp(static_cast<int>(done * kBarWidth), 0, kBarWidth);
    return std::string(static_cast<std::size_t>(full), '#') +
           std::string(static_cast<std::size_t>(kBarWidth - full), '.');
}

}  // namespace

std::string clipping(double norm) {
    return norm > 0.0 ? fmt::format("gradients clipped at norm {}", norm) : "gradients not clipped";
}

void tell(std::string_view text) noexcept { std::fwrite(text.data(), 1, text.size(), stderr); }

void print(std::string_view text) noexcept {
    errno = 0;
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() && stdout_error == 0) {
        stdout_error = errno;
    }
}

void finish_output() {
    errno = 0;
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
    const int error = stdout_error != 0 ? stdout_error : errno;
    if (error == EPIPE) end_by_broken_pipe();
    throw IoError(fmt::format("standard output cannot be written{}{}; send it where there is room",
                              error == 0 ? "" : ": ", error == 0 ? "" : std::strerror(error)));
}

ConsoleObserver::ConsoleObserver(std::string label)
    : label_(std::move(label)), terminal_(isatty(STDERR_FILENO) == 1) {}
ConsoleObserver::~ConsoleObserver() { clear_bar(); }

void ConsoleObserver::clear_bar() {
    if (bar_shown_) tell("\r\033[K");
    bar_shown_ = false;
}

void ConsoleObserver::on_start(const trainer::RunInfo& info) {
    info_ = info;
    started_ = true;
    start_ = last_shown_ = std::chrono::steady_clock::now();
    tell("{}: {} parameters, {} training and {} validation tokens, {} threads, {}{}\n", label_,
         info.parameters, info.training_tokens, info.validation_tokens, info.threads,
         clipping(info.clip_norm),
         info.resumed_from.empty() ? "" : ", resumed from " + one_line(info.resumed_from.native()));
}

void ConsoleObserver::on_step(const trainer::StepRecord& record) {
    const auto now = std::chrono::steady_clock::now();
    const bool is_last = record.step == info_.total_steps;
    if (record.validation_loss) validation_ = fmt::format(" val {:.4f}", *record.validation_loss);
    const auto interval = terminal_ ? std::chrono::steady_clock::duration(kBarInterval)
                                    : std::chrono::steady_clock::duration(kLineInterval);
    if (now - last_shown_ < interval && !is_last && record.step != info_.first_step) return;
    last_shown_ = now;
    const double elapsed = std::chrono::duration<double>(now - start_).count();
    const auto done = static_cast<double>(record.step - info_.first_step + 1);
    const double left = elapsed / done * static_cast<double>(info_.total_steps - record.step);
    const auto figures =
        fmt::format("loss {:.4f}{}  {:.0f} tokens/s  {}  {} left", record.loss, validation_,
                    record.tokens_per_second, human_bytes(record.resident_bytes), human_seconds(left));
    if (terminal_) {
        const double part = static_cast<double>(record.step) / static_cast<double>(info_.total_steps);
        tell("\r\033[K{} [{}] {}/{}  {}", label_, bar(part), record.step, info_.total_steps, figures);
        bar_shown_ = true;
        if (is_last) {
            tell("\n");
            bar_shown_ = false;
        }
    } else {
        tell("{} step {}/{}  {}\n", label_, record.step, info_.total_steps, figures);
    }
}

void ConsoleObserver::on_checkpoint(const trainer::CheckpointRecord& record) {
    if (!terminal_) {
        tell("{} checkpoint {} ({})\n", label_, one_line(record.folder.native()), human_bytes(record.bytes));
    }
}
void ConsoleObserver::on_notice(const std::string& line) {
    clear_bar();
    tell("{}: note: {}\n", label_, one_line(line));
}
bool ConsoleObserver::stop_requested() { return StopSignals::received() != 0; }

}  // namespace flashoptim::app
