// The worker threads of the step. They sleep between steps; one caller at a time, others run alone.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "flashoptim/step.h"

namespace flashoptim {

namespace {

int default_threads() {
    if (const char* text = std::getenv("OMP_NUM_THREADS")) {
        const long count = std::strtol(text, nullptr, 10);  // "4" or "4,2": the outermost level counts
        if (count > 0) return static_cast<int>(std::min(count, 1024L));
    }
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
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
    std::mutex busy;  // held by the caller that is served
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
ThreadPool::~ThreadPool() = default;
ThreadPool::ThreadPool(ThreadPool&&) noexcept = default;
ThreadPool& ThreadPool::operator=(ThreadPool&&) noexcept = default;

int ThreadPool::threads() const { return impl_->threads; }

void ThreadPool::run(std::int64_t jobs, void (*job)(void*, std::int64_t), void* context) {
    auto& pool = *impl_;
    const std::unique_lock served(pool.busy, std::try_to_lock);
    if (!served || pool.threads == 1 || jobs <= 1) {
        for (std::int64_t n = 0; n < jobs; ++n) job(context, n);
        return;
    }
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
