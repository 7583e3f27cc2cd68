// Threads that cannot be started, as where a limit of processes or of memory is reached. Link
// flashoptim_failing_threads: it stands before the C library's pthread_create.
#pragma once

namespace flashoptim {

/// Whether this system lets pthread_create be replaced.
bool can_fail_threads();

/// While one lives, `successes` threads more can be started in this process, and no others.
class FailingThreads {
public:
    explicit FailingThreads(int successes);
    ~FailingThreads();
    FailingThreads(const FailingThreads&) = delete;
    FailingThreads& operator=(const FailingThreads&) = delete;
    /// How often one was refused.
    [[nodiscard]] int refused() const;
};

}  // namespace flashoptim
