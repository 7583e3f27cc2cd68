// Handles of the C interface: what is no live one is found without reading memory, from any thread. If this
// fails, a binding whose garbage collector destroys an optimizer twice, or too early, crashes its program.
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "flashoptim/c_api.h"
#include "flashoptim/optimizer.h"

namespace flashoptim {

namespace {

flashoptim_optimizer* made() {
    flashoptim_optimizer* optimizer = nullptr;
    EXPECT_EQ(flashoptim_create(FLASHOPTIM_SGD, nullptr, nullptr, &optimizer), FLASHOPTIM_OK)
        << flashoptim_last_error();
    return optimizer;
}

}  // namespace

// An address that is used again would make a stale handle that of another optimizer.
TEST(CApiHandles, NoneComesTwice) {
    std::unordered_set<flashoptim_optimizer*> seen;
    for (int n = 0; n < 10'000; ++n) {
        auto* const handle = made();
        ASSERT_TRUE(seen.insert(handle).second);
        ASSERT_NE(reinterpret_cast<std::uintptr_t>(handle) % 2, 0U) << "an address of an object can be even";
        ASSERT_EQ(flashoptim_destroy(handle), FLASHOPTIM_OK);
    }
    for (auto* const handle : seen)
        ASSERT_EQ(flashoptim_step(handle, nullptr, nullptr), FLASHOPTIM_INVALID_ARGUMENT);
}

TEST(CApiHandles, OneIsDestroyedOnceWhateverThreadsTry) {
    for (int round = 0; round < 50; ++round) {
        auto* const handle = made();
        std::atomic<int> destroyed = 0;
        std::vector<std::thread> threads;
        for (int n = 0; n < 4; ++n) {
            threads.emplace_back([&] { destroyed += flashoptim_destroy(handle) == FLASHOPTIM_OK ? 1 : 0; });
        }
        for (auto& thread : threads) thread.join();
        ASSERT_EQ(destroyed.load(), 1);
    }
}

TEST(CApiHandles, ManyThreadsMakeUseAndDestroyTheirOwn) {
    std::atomic<int> failed = 0;
    std::vector<std::thread> threads;
    for (int n = 0; n < 4; ++n) {
        threads.emplace_back([&] {
            flashoptim_optimizer* former = nullptr;
            for (int t = 0; t < 200; ++t) {
                auto* const handle = made();
                std::size_t count = 1;
                const bool right =
                    flashoptim_parameter_count(handle, &count) == FLASHOPTIM_OK && count == 0 &&
                    flashoptim_step(handle, nullptr, nullptr) == FLASHOPTIM_OK &&
                    flashoptim_destroy(handle) == FLASHOPTIM_OK &&
                    flashoptim_step(handle, nullptr, nullptr) == FLASHOPTIM_INVALID_ARGUMENT &&
                    (former == nullptr || flashoptim_destroy(former) == FLASHOPTIM_INVALID_ARGUMENT);
                if (!right) ++failed;
                former = handle;
            }
        });
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(failed.load(), 0) << flashoptim_last_error();
}

}  // namespace flashoptim
