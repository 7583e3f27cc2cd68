// The process's worker threads. They sleep until somebody has jobs, and take part where they find a place.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "system/cpu_count.h"

namespace flashoptim {

/// The jobs of one call: job(context, n) for each n in [0, jobs). Lies on the caller's stack.
struct Round {
    std::int64_t jobs = 0;
    void (*job)(void* context, std::int64_t n) = nullptr;
    void* context = nullptr;
    std::atomic<std::int64_t> next{0};
    Affinity affinity;  // of the caller; workers take it over
    // Guarded by the workers' mutex.
    int places = 0;   // for workers that may still join
    int working = 0;  // workers that have joined
    Round* following = nullptr;
};

/// Does jobs of the round until none is left, in the default floating-point mode.
void work_on(Round& round);

/// One set for all callers: a round has a place for each worker that it may take, and those that are idle
/// join. So several callers share the workers, a round whose workers come late is finished without them, and
/// one inside of another cannot wait for itself. Workers run where the caller of their round may run, so that
/// who confines a thread confines its steps, and nobody else's. Threads are started when a round wants them
/// and are joined at the end of the process, or when the library is unloaded.
class Workers {
public:
    /// Those of this process; a child after fork() has its own. Null where there is no memory for them.
    static Workers* of_process() noexcept;

    /// Does the round on the calling thread and on at most `helpers` workers. In all there are as many
    /// workers as the largest number of helpers, or as there are CPUs beside the caller's; never more than
    /// kMostThreads - 1. Those that cannot be started are done without.
    void run(Round& round, int helpers) noexcept;

    explicit Workers(int helpers_of_cpus) : helpers_of_cpus_(helpers_of_cpus) {}
    [[nodiscard]] bool is_of_this_process() const { return process_ == ::getpid(); }
    /// Joins the threads. Rounds that come later are done by their callers.
    void stop();

private:
    void serve();
    void start(int wanted) noexcept;
    void open(Round& round, int places);
    void close(Round& round);

    const pid_t process_ = ::getpid();
    const int helpers_of_cpus_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> threads_;
    int idle_ = 0;           // threads without a round
    Round* open_ = nullptr;  // rounds that have places, the oldest first
    bool stopping_ = false;
};

}  // namespace flashoptim
