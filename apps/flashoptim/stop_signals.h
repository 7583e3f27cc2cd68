// Handles the signals that ask the program to stop, and forwards them to a child process. Stops nothing
// itself.
#pragma once

#include <sys/types.h>

namespace flashoptim::app {

/// While one lives, the first SIGINT, SIGTERM, SIGXCPU or SIGHUP (unless nohup has it ignored) is remembered
/// instead of ending the process, so that the work can end where it loses nothing; a later one ends it at
/// once. The same request often comes twice (from the terminal and from a parent, or as timeout(1) sends it),
/// so what follows within half a second is not a second one. SIGXCPU, which the system repeats every second
/// between the soft and the hard limit on processor time, never is. One at a time.
class StopSignals {
public:
    /// Whether SIGQUIT is handled, too, for a process that has a child to end.
    enum class Quit : bool { kKills, kTaken };
    explicit StopSignals(Quit quit = Quit::kKills);
    ~StopSignals();
    StopSignals(const StopSignals&) = delete;
    StopSignals& operator=(const StopSignals&) = delete;

    /// The first signal received, or 0.
    static int received();

    /// Call this in a child process before exec: the signals end the child again.
    static void reset() noexcept;

    /// Forwards every handled signal to this process, and wakes it if it is stopped. 0: to none.
    static void pass_on_to(pid_t child);
};

}  // namespace flashoptim::app
