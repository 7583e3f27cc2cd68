// A step inside an OpenMP parallel region runs on the calling thread, because the region uses all processors.
#include <omp.h>

#include <mutex>
#include <set>
#include <thread>

#include "../support/step_cases.h"

namespace flashoptim {

TEST(OpenMP, AStepInAParallelRegionStartsNoThreads) {
    struct Seen {
        std::mutex mutex;
        std::set<std::thread::id> threads;
    };
    std::vector<std::size_t> counts(2);
#pragma omp parallel for num_threads(2)
    for (int region = 0; region < 2; ++region) {
        ThreadPool pool(4);
        Seen seen;
        pool.run(
            64,
            [](void* context, std::int64_t) {
                auto& s = *static_cast<Seen*>(context);
                const std::lock_guard lock(s.mutex);
                s.threads.insert(std::this_thread::get_id());
            },
            &seen);
        counts[static_cast<std::size_t>(region)] = seen.threads.size();
    }
    EXPECT_EQ(counts[0], 1U);
    EXPECT_EQ(counts[1], 1U);
}

}  // namespace flashoptim
