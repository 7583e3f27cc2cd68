// The signals that ask this program to stop, and a child process to which they are passed on. Stops nothing
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
    /// Whether SIGQUIT is taken, too: for a process that has a child to end.
    enum class Quit : bool { kKills, kTaken };
    explicit StopSignals(Quit quit = Quit::kKills);
    ~StopSignals();
    StopSignals(const StopSignals&) = delete;
    StopSignals& operator=(const StopSignals&) = delete;

    /// The first signal that came, 0 if none did.
    static int received();

    /// In a child process before it becomes another program: the signals end it again.
    static void reset() noexcept;

    /// Passes every signal that is taken on to this process, which is woken if it was stopped; 0: to none.
    static void pass_on_to(pid_t child);
};

}  // namespace flashoptim::app
