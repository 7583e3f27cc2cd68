// A caller's hold on the worker threads of the process, with the workspace of its steps.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "flashoptim/error.h"
#include "flashoptim/step.h"
#include "step/cpu_count.h"
#include "step/float_environment.h"
#include "step/workers.h"
#include "step/workspace.h"

#if defined(__ELF__)
// There if the process has an OpenMP runtime, null otherwise.
extern "C" int omp_in_parallel() __attribute__((weak));
#endif

namespace flashoptim {

namespace {

bool is_in_parallel_region() {
#if defined(__ELF__)
    return omp_in_parallel != nullptr && omp_in_parallel() != 0;
#else
    return false;
#endif
}

}  // namespace

struct ThreadPool::Impl {
    explicit Impl(int wanted_) : wanted(wanted_) {
        if (wanted == 0) limit = default_threads();
    }

    /// How many threads a call uses: those of the default no more than the CPUs that its own thread may use by now.
    [[nodiscard]] int threads_of_call() const {
        return limit.is_chosen || limit.count == 1 ? limit.count : std::min(limit.count, affinity_cpus());
    }

    const int wanted;  // 0: the default
    DefaultThreads limit{wanted, true};
    const pid_t process = ::getpid();
    std::atomic<bool> busy = false;  // a caller is served
    Workspace workspace;             // of the caller that is served
};

ThreadPool::ThreadPool(int threads) {
    if (threads < 0) {
        throw InvalidArgument("the number of threads is " + std::to_string(threads) +
                              ": give one of at least 1, or 0 for as many as the process may use CPUs");
    }
    impl_ = std::make_unique<Impl>(threads);
}
ThreadPool::~ThreadPool() { leave_to_parent(); }
ThreadPool::ThreadPool(ThreadPool&&) noexcept = default;
ThreadPool& ThreadPool::operator=(ThreadPool&& other) noexcept {
    leave_to_parent();
    impl_ = std::move(other.impl_);
    return *this;
}

int ThreadPool::threads() const { return impl_->limit.count; }

/// In a child after fork() the workspace may be one that a thread of the parent was just writing: it is left behind.
void ThreadPool::leave_to_parent() {
    if (impl_ && impl_->process != ::getpid() && impl_->busy) {
        // NOLINTNEXTLINE(bugprone-unused-return-value)
        static_cast<void>(impl_.release());
    }
}

void ThreadPool::run(std::int64_t jobs, void (*job)(void*, std::int64_t), void* context) {
    const Lease lease(*this);
    run_jobs(lease, jobs, job, context);
}

ThreadPool::Lease::Lease(ThreadPool& pool) {
    if (pool.impl_->process != ::getpid()) {
        auto own = std::make_unique<Impl>(pool.impl_->wanted);
        pool.leave_to_parent();
        pool.impl_ = std::move(own);
    }
    if (!pool.impl_->busy.exchange(true)) impl_ = pool.impl_.get();
}
ThreadPool::Lease::~Lease() {
    if (impl_ != nullptr) impl_->busy = false;
}
Workspace* ThreadPool::Lease::workspace() const { return impl_ == nullptr ? nullptr : &impl_->workspace; }

void ThreadPool::run_jobs(const Lease& lease, std::int64_t jobs, void (*job)(void*, std::int64_t),
                          void* context) {
    Round round;
    round.jobs = jobs;
    round.job = job;
    round.context = context;
    const bool is_alone = lease.impl_ == nullptr || jobs <= 1 || is_in_parallel_region();
    const int threads = is_alone ? 1 : lease.impl_->threads_of_call();
    auto* const workers = threads > 1 ? Workers::of_process() : nullptr;
    if (workers == nullptr) return work_on(round);
    workers->run(round, static_cast<int>(std::min<std::int64_t>(threads, jobs)) - 1);
}

}  // namespace flashoptim
