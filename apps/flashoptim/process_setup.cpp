// Standard descriptors that are always open, as many files as the system allows, and writes that fail instead
// of killing.
#include "process_setup.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>

namespace flashoptim::app {
namespace {

std::array<bool, 3> closed{};
bool pipe_was_ignored = false, size_was_ignored = false, prepared = false;

// Returns whether the signal was ignored already.
bool ignore(int signal) { return std::signal(signal, SIG_IGN) == SIG_IGN; }

// Every file of the data stays open while a run lasts, and many systems allow 1,024 files to who does not ask
// for more.
void allow_open_files() {
    constexpr rlim_t kMost = 1 << 20;  // some programs, started by this one, close each that may be open
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    const rlim_t wanted = std::min(limit.rlim_max, kMost);
    if (limit.rlim_cur >= wanted) return;
    limit.rlim_cur = wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

void prepare_process() {
    for (std::size_t n = 0; n < closed.size(); ++n) {
        closed[n] = fcntl(static_cast<int>(n), F_GETFD) == -1 && errno == EBADF;
        if (!closed[n]) continue;
        // The lowest free one is taken. Without /dev any folder keeps the place; what is written to it is
        // lost, too.
        if (open("/dev/null", O_RDWR) < 0 && open("/", O_RDONLY | O_DIRECTORY) < 0) _exit(2);
    }
    allow_open_files();
    pipe_was_ignored = ignore(SIGPIPE);
    size_was_ignored = ignore(SIGXFSZ);
    prepared = true;
}

bool is_prepared() { return prepared; }

bool was_closed(int descriptor) {
    return descriptor >= 0 && descriptor < static_cast<int>(closed.size()) &&
           closed[static_cast<std::size_t>(descriptor)];
}

void restore_write_signals() noexcept {
    if (!pipe_was_ignored) std::signal(SIGPIPE, SIG_DFL);
    if (!size_was_ignored) std::signal(SIGXFSZ, SIG_DFL);
}

void end_by_broken_pipe() {
    if (pipe_was_ignored) return;
    std::signal(SIGPIPE, SIG_DFL);
    raise(SIGPIPE);
}

}  // namespace flashoptim::app
