// Starting threads to see whether it can be done, and the number of threads of LibTorch.
#include "trainer/threads.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "flashoptim/error.h"
#include "flashoptim/system/cpu_count.h"

namespace flashoptim::trainer {

int startable_threads(int wanted) {
    std::mutex mutex;
    std::condition_variable ended;
    bool over = false;
    std::vector<std::thread> threads;
    try {
        threads.reserve(static_cast<std::size_t>(std::max(wanted, 0)));
        while (static_cast<int>(threads.size()) < wanted) {
            threads.emplace_back([&] {
                std::unique_lock lock(mutex);
                ended.wait(lock, [&] { return over; });
            });
        }
    } catch (const std::system_error&) {  // NOLINT(bugprone-empty-catch): those that there are count
    } catch (const std::bad_alloc&) {     // NOLINT(bugprone-empty-catch)
    }
    {
        const std::lock_guard lock(mutex);
        over = true;
    }
    ended.notify_all();
    for (auto& thread : threads) thread.join();
    return static_cast<int>(threads.size());
}

int require_startable(int threads) {
    const int startable = startable_threads(2 * (threads - 1));
    if (startable < threads - 1) {
        throw InvalidArgument(
            "the system starts no more than " + std::to_string(startable + 1) + " of " +
            std::to_string(threads) +
            " threads; take fewer threads, or raise the limit (ulimit -u or -v, or the pids and "
            "memory of the control group)");
    }
    return startable;
}

RunThreads set_threads(int wanted) {
    const int torch = std::min(wanted > 0 ? wanted : at::get_num_threads(), kMostThreads);
    require_startable(torch);
    at::set_num_threads(torch);  // some builds of LibTorch start threads here that they keep, beside OpenMP's
    const int startable = require_startable(torch);  // LibTorch starts one set of them, the optimizer another
    return {torch, 1 + std::min(torch - 1, startable - (torch - 1))};
}

}  // namespace flashoptim::trainer
