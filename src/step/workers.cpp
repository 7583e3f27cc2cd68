#include "step/workers.h"

#include <algorithm>
#include <exception>
#include <memory>

#include "step/float_environment.h"

namespace flashoptim {

namespace {

/// Holds an object that is never destroyed, because destructors that run at the end of the process may still
/// step.
template <class T>
union NeverDestroyed {
    template <class... Arguments>
    explicit NeverDestroyed(Arguments... arguments) : value(arguments...) {}
    ~NeverDestroyed() {}  // NOLINT(modernize-use-equals-default): a defaulted one is deleted
    NeverDestroyed(const NeverDestroyed&) = delete;
    NeverDestroyed& operator=(const NeverDestroyed&) = delete;

    T value;
};

// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): one per process
std::atomic<Workers*> of_this_process = nullptr;

struct StopAtExit {
    ~StopAtExit() {
        auto* const workers = of_this_process.load();
        if (workers != nullptr && workers->is_of_this_process()) workers->stop();
    }
};

}  // namespace

void work_on(Round& round) {
    const DefaultFloatEnvironment exact;
    for (auto n = round.next.fetch_add(1); n < round.jobs; n = round.next.fetch_add(1)) {
        round.job(round.context, n);
    }
}

Workers* Workers::of_process() noexcept {
    auto* workers = of_this_process.load();
    if (workers != nullptr && workers->is_of_this_process()) return workers;
    try {
        const int helpers = usable_cpus() - 1;
        static const StopAtExit kStopAtExit;
        if (workers == nullptr) {
            static NeverDestroyed<Workers> first(helpers);
            of_this_process.compare_exchange_strong(workers, &first.value);
        } else {  // after fork() a child can neither use nor destroy the workers of its parent
            auto own = std::make_unique<Workers>(helpers);
            // NOLINTNEXTLINE(bugprone-unused-return-value): never destroyed
            if (of_this_process.compare_exchange_strong(workers, own.get())) static_cast<void>(own.release());
        }
    } catch (const std::exception&) {
        return nullptr;
    }
    return of_this_process;
}

void Workers::run(Round& round, int helpers) noexcept {
    round.affinity = Affinity::of_this_thread();
    {
        const std::lock_guard lock(mutex_);
        start(helpers);
        open(round, std::min(helpers, static_cast<int>(threads_.size())));
    }
    work_on(round);
    std::unique_lock lock(mutex_);
    close(round);
    done_.wait(lock, [&] { return round.working == 0; });
}

/// Starts threads until `wanted` are idle or the limit is reached.
void Workers::start(int wanted) noexcept {
    const auto most =
        static_cast<std::size_t>(std::min(std::max(wanted, helpers_of_cpus_), kMostThreads - 1));
    try {
        while (!stopping_ && idle_ < wanted && threads_.size() < most) {
            threads_.emplace_back([this] { serve(); });
            ++idle_;
        }
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch)
        // No memory for a stack, or the user's limit of threads: the existing threads do the work. The next
        // round tries again.
    }
}

void Workers::open(Round& round, int places) {
    if (places == 0 || stopping_) return;
    round.places = places;
    auto** end = &open_;
    while (*end != nullptr) end = &(*end)->following;
    *end = &round;
    if (places >= idle_) return wake_.notify_all();
    for (int n = 0; n < places; ++n) wake_.notify_one();
}

/// Lets no more workers join the round.
void Workers::close(Round& round) {
    if (round.places == 0) return;
    round.places = 0;
    auto** at = &open_;
    while (*at != &round) at = &(*at)->following;
    *at = round.following;
}

void Workers::serve() {
    auto affinity = Affinity::of_this_thread();
    std::unique_lock lock(mutex_);
    for (;;) {
        wake_.wait(lock, [&] { return stopping_ || open_ != nullptr; });
        if (stopping_) return;
        Round& round = *open_;
        ++round.working;
        if (round.places == 1) {
            close(round);
        } else {
            --round.places;
        }
        --idle_;
        lock.unlock();
        if (affinity != round.affinity) {
            affinity = round.affinity;
            affinity.confine_this_thread();
        }
        work_on(round);
        lock.lock();
        ++idle_;
        close(round);  // so that no worker joins a round without jobs
        // Notifies under the lock. After the unlock the caller may have destroyed the round.
        if (--round.working == 0) done_.notify_all();
    }
}

void Workers::stop() {
    std::vector<std::thread> leaving;
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
        leaving.swap(threads_);
    }
    wake_.notify_all();
    for (auto& thread : leaving) {
        if (thread.get_id() == std::this_thread::get_id()) {
            thread.detach();  // this thread itself: a job ends the process, and a thread cannot join itself
        } else {
            thread.join();
        }
    }
}

}  // namespace flashoptim
