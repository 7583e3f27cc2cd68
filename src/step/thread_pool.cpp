// The worker threads of the step. They sleep between steps; one caller at a time, others run alone.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "flashoptim/step.h"
#include "step/float_environment.h"
#include "step/workspace.h"

#if defined(__ELF__)
// There if the process has an OpenMP runtime, null otherwise.
extern "C" int omp_in_parallel() __attribute__((weak));
#endif

namespace flashoptim {

namespace {

int default_threads() {
    if (const char* text = std::getenv("OMP_NUM_THREADS")) {
        const long count = std::strtol(text, nullptr, 10);  // "4" or "4,2": the outermost level counts
        if (count > 0) return static_cast<int>(std::min(count, 1024L));
    }
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

bool is_in_parallel_region() {
#if defined(__ELF__)
    return omp_in_parallel != nullptr && omp_in_parallel() != 0;
#else
    return false;
#endif
}

}  // namespace

struct ThreadPool::Impl {
    explicit Impl(int count) : threads(count) {}
    ~Impl() {
        {
            const std::lock_guard lock(mutex);
            stopping = true;
        }
        wake.notify_all();
        for (auto& worker : workers) worker.join();
    }

    void work_on_jobs() {
        const DefaultFloatEnvironment exact;
        for (auto n = next.fetch_add(1); n < jobs; n = next.fetch_add(1)) job(context, n);
    }

    void worker_loop() {
        std::uint64_t seen = 0;
        std::unique_lock lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return stopping || round != seen; });
            if (stopping) return;
            seen = round;
            lock.unlock();
            work_on_jobs();
            lock.lock();
            if (--working == 0) done.notify_one();
        }
    }

    void start_workers() {
        while (static_cast<int>(workers.size()) < threads - 1)
            workers.emplace_back([this] { worker_loop(); });
    }

    const int threads;
    const pid_t process = ::getpid();
    std::atomic<bool> busy = false;  // a caller is served
    Workspace workspace;             // of the caller that is served
    std::mutex mutex;
    std::condition_variable wake, done;
    std::vector<std::thread> workers;
    bool stopping = false;
    std::uint64_t round = 0;
    int working = 0;
    std::int64_t jobs = 0;
    void (*job)(void*, std::int64_t) = nullptr;
    void* context = nullptr;
    std::atomic<std::int64_t> next{0};
};

ThreadPool::ThreadPool(int threads)
    : impl_(std::make_unique<Impl>(threads > 0 ? threads : default_threads())) {}
ThreadPool::~ThreadPool() { leave_workers_of_parent(); }
ThreadPool::ThreadPool(ThreadPool&&) noexcept = default;
ThreadPool& ThreadPool::operator=(ThreadPool&& other) noexcept {
    leave_workers_of_parent();
    impl_ = std::move(other.impl_);
    return *this;
}

int ThreadPool::threads() const { return impl_->threads; }

/// fork() copies the pool but not its threads: the child's copy can neither be used nor destroyed, so it is left behind.
void ThreadPool::leave_workers_of_parent() {
    if (impl_ && impl_->process != ::getpid()) {
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
        const int threads = pool.impl_->threads;
        pool.leave_workers_of_parent();
        pool.impl_ = std::make_unique<Impl>(threads);
    }
    if (!pool.impl_->busy.exchange(true)) impl_ = pool.impl_.get();
}
ThreadPool::Lease::~Lease() {
    if (impl_ != nullptr) impl_->busy = false;
}
Workspace* ThreadPool::Lease::workspace() const { return impl_ == nullptr ? nullptr : &impl_->workspace; }

void ThreadPool::run_jobs(const Lease& lease, std::int64_t jobs, void (*job)(void*, std::int64_t),
                          void* context) {
    if (lease.impl_ == nullptr || lease.impl_->threads == 1 || jobs <= 1 || is_in_parallel_region()) {
        const DefaultFloatEnvironment exact;
        for (std::int64_t n = 0; n < jobs; ++n) job(context, n);
        return;
    }
    auto& pool = *lease.impl_;
    {
        const std::lock_guard lock(pool.mutex);
        pool.start_workers();
        pool.jobs = jobs;
        pool.job = job;
        pool.context = context;
        pool.next.store(0);
        pool.working = static_cast<int>(pool.workers.size());
        ++pool.round;
    }
    pool.wake.notify_all();
    pool.work_on_jobs();
    std::unique_lock lock(pool.mutex);
    pool.done.wait(lock, [&] { return pool.working == 0; });
}

}  // namespace flashoptim
