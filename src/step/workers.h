// The worker threads of the process. They sleep until a call has jobs, and join it if it has a place.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "flashoptim/system/cpu_count.h"

namespace flashoptim {

/// The jobs of one call: job(context, n) for each n in [0, jobs). It lies on the caller's stack.
struct Round {
    std::int64_t jobs = 0;
    void (*job)(void* context, std::int64_t n) = nullptr;
    void* context = nullptr;
    std::atomic<std::int64_t> next{0};
    Affinity affinity;  // CPUs of the caller; workers adopt them
    // Guarded by the workers' mutex.
    int places = 0;   // for workers that may still join
    int working = 0;  // workers that have joined
    Round* following = nullptr;
};

/// Runs jobs of the round until none is left, in the default floating-point mode.
void work_on(Round& round);

/// One set of threads for all callers. A round has a place for each worker that it may use, and idle workers
/// join it. So several callers share the workers. A round does not wait for workers that come late, and a
/// round inside a job of another round cannot deadlock. A worker runs on the CPUs on which the caller of its
/// round may run, so a caller's CPU affinity holds for its steps and for no others. Threads are started when
/// a round needs them. They are joined at the end of the process, or when the library is unloaded.
class Workers {
public:
    /// The workers of this process; a child after fork() has its own. Null if there is no memory for them.
    static Workers* of_process() noexcept;

    /// Runs the round on the calling thread and on at most `helpers` workers. The total number of workers is
    /// the largest `helpers` of any call, or the number of CPUs less one; never more than kMostThreads - 1.
    /// If a worker cannot be started, the round runs without it.
    void run(Round& round, int helpers) noexcept;

    explicit Workers(int helpers_of_cpus) : helpers_of_cpus_(helpers_of_cpus) {}
    [[nodiscard]] bool is_of_this_process() const { return process_ == ::getpid(); }
    /// Joins the threads. Later rounds run on their calling threads alone.
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
    Round* open_ = nullptr;  // list of rounds with free places, the oldest first
    bool stopping_ = false;
};

}  // namespace flashoptim
