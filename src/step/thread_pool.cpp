// ThreadPool: the right of one caller at a time to the worker threads and to a workspace.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "flashoptim/error.h"
#include "flashoptim/step.h"
#include "flashoptim/system/cpu_count.h"
#include "step/float_environment.h"
#include "step/workers.h"
#include "step/workspace.h"

#if defined(__ELF__)
// A weak symbol: null if the process has no OpenMP runtime.
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
    explicit Impl(int wanted) : limit{wanted, true} {
        if (wanted == 0) limit = default_threads();
    }
    ~Impl() {
        if (is_held_in_parent()) leave_workspace();
    }
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;

    /// Threads of a call. A default number is limited to the CPUs that the calling thread may use now.
    [[nodiscard]] int threads_of_call() const {
        return limit.is_chosen || limit.count == 1 ? limit.count : std::min(limit.count, affinity_cpus());
    }
    [[nodiscard]] bool is_held_in_parent() const {
        const int process = holder;
        return process != kNobody && process != ::getpid();
    }
    /// Gives up the parent's workspace in a child after fork(). It is not freed: a thread of the parent may
    /// have been writing there, or the forking thread itself may still use it in the child.
    void leave_workspace() {
        // NOLINTNEXTLINE(bugprone-unused-return-value)
        static_cast<void>(workspace.release());
    }
    /// Takes the pool over in a child after fork(). Several threads of the child may try at once; one
    /// succeeds.
    bool take_from_parent(int process) {
        auto own = std::make_unique<Workspace>();
        int former = holder;
        if (former == kNobody || former == process || !holder.compare_exchange_strong(former, process)) {
            return false;
        }
        leave_workspace();
        workspace = std::move(own);
        return true;
    }

    static constexpr int kNobody = 0;  // no process has this id
    DefaultThreads limit;
    std::atomic<int> holder = kNobody;  // id of the process whose caller is served
    std::unique_ptr<Workspace> workspace = std::make_unique<Workspace>();  // of the caller that is served
};

ThreadPool::ThreadPool(int threads) {
    if (threads < 0) {
        throw InvalidArgument("the number of threads is " + std::to_string(threads) +
                              ": give one of at least 1, or 0 for as many as the process may use CPUs");
    }
    impl_ = std::make_unique<Impl>(threads);
}
ThreadPool::~ThreadPool() = default;
ThreadPool::ThreadPool(ThreadPool&&) noexcept = default;
ThreadPool& ThreadPool::operator=(ThreadPool&&) noexcept = default;

int ThreadPool::threads() const { return impl_->limit.count; }

void ThreadPool::run(std::int64_t jobs, void (*job)(void*, std::int64_t), void* context) {
    const Lease lease(*this);
    run_jobs(lease, jobs, job, context);
}

ThreadPool::Lease::Lease(ThreadPool& pool) : process_(::getpid()) {
    auto& impl = *pool.impl_;
    int holder = Impl::kNobody;
    if (impl.holder.compare_exchange_strong(holder, process_) ||
        (holder != process_ && impl.take_from_parent(process_))) {
        impl_ = &impl;
    }
}
ThreadPool::Lease::~Lease() {
    int holder =
        process_;  // another process id: a job forked, and in the child another thread holds the pool
    if (impl_ != nullptr) impl_->holder.compare_exchange_strong(holder, Impl::kNobody);
}
Workspace* ThreadPool::Lease::workspace() const {
    return impl_ == nullptr ? nullptr : impl_->workspace.get();
}

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
