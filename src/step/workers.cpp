#include "step/workers.h"

#include <algorithm>
#include <exception>
#include <memory>

#include "step/float_environment.h"

namespace flashoptim {

namespace {

/// What is destroyed at the end of the process may step before it goes.
template <class T>
union NeverDestroyed {
    template <class... Arguments>
    explicit NeverDestroyed(Arguments... arguments) : value(arguments...) {}
    ~NeverDestroyed() {}  // NOLINT(modernize-use-equals-default): it would be deleted
    NeverDestroyed(const NeverDestroyed&) = delete;
    NeverDestroyed& operator=(const NeverDestroyed&) = delete;

    T value;
};

// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): a process has one
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
        } else {  // a child after fork() can neither use nor destroy its parent's
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

/// Until `wanted` are idle, or there are enough for all callers.
void Workers::start(int wanted) noexcept {
    const auto most =
        static_cast<std::size_t>(std::min(std::max(wanted, helpers_of_cpus_), kMostThreads - 1));
    try {
        while (!stopping_ && idle_ < wanted && threads_.size() < most) {
            threads_.emplace_back([this] { serve(); });
            ++idle_;
        }
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch)
        // No memory for its stack, or no thread more for this user: those that there are do the work.
        // Tried again by the next round.
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

/// Nobody joins any more.
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
        close(round);  // no job is left
        // Under the lock, behind which the round may be gone.
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
            thread.detach();  // a job that ends the process
        } else {
            thread.join();
        }
    }
}

}  // namespace flashoptim
