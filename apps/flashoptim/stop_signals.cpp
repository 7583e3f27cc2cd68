// The signal handler.
#include "stop_signals.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <ctime>

namespace flashoptim::app {
namespace {

constexpr std::int64_t kSameRequest = 500'000'000;  // nanoseconds
constexpr std::array kTaken = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU};

// A signal handler can reach nothing but this.
std::atomic<int> first_signal{0};
std::atomic<std::int64_t> first_time{0};
std::atomic<pid_t> receiver{0};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<std::int64_t>::is_always_lock_free &&
              std::atomic<pid_t>::is_always_lock_free);

std::int64_t now() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void take(int signal) {
    const int kept_errno = errno;
    const pid_t child = receiver;
    int none = 0;
    if (first_signal.compare_exchange_strong(none, signal)) {
        first_time = now();
    } else if (child == 0 && signal != SIGXCPU && now() - first_time > kSameRequest) {
        std::signal(signal, SIG_DFL);
        raise(signal);  // comes when this handler returns
    }
    if (child != 0) {
        kill(child, signal);
        kill(child, SIGCONT);
    }
    errno = kept_errno;
}

bool is_ignored(int signal) {
    struct sigaction action{};
    return sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

}  // namespace

StopSignals::StopSignals(Quit quit) {
    first_signal = 0;
    struct sigaction action{};
    action.sa_handler = take;
    action.sa_flags = SA_RESTART;
    for (const int signal : kTaken) sigaddset(&action.sa_mask, signal);
    for (const int signal : kTaken) {
        if (signal == SIGQUIT && quit == Quit::kKills) continue;
        if (signal == SIGHUP && is_ignored(signal)) continue;
        sigaction(signal, &action, nullptr);
    }
}

StopSignals::~StopSignals() { reset(); }

void StopSignals::reset() noexcept {
    for (const int signal : kTaken) {
        if (!is_ignored(signal)) std::signal(signal, SIG_DFL);
    }
}

int StopSignals::received() { return first_signal; }

void StopSignals::pass_on_to(pid_t child) { receiver = child; }

}  // namespace flashoptim::app
