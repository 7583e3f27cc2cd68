// Memory that ends: a chosen allocation of the process fails. For tests of what a
// failed allocation leaves behind.
//
// Link flashoptim_failing_allocations: it replaces the operator new of the whole executable, of its shared
// libraries too, and mmap. What comes from elsewhere (a device, a tensor library) asks
// allocation_may_succeed() first.
//
//     fail_each_allocation(
//         [] { return Trained(); },                                     // a new one for each attempt
//         [](Trained& t) { t.optimizer().set_hyperparameters(...); },   // here memory ends
//         [](Trained& t, const FailedAllocation& failure) {             // here there is enough again
//             if (failure.error) t.expect_unchanged();
//             t.expect_same_steps_as(twin);
//         });
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <exception>
#include <string>

namespace flashoptim {

/// Whether memory comes back behind the allocation that failed. Where it does not, the way back must do
/// without it.
enum class MemoryEnds : std::uint8_t { kForOneAllocation, kForGood };

/// One attempt with too little memory.
struct FailedAllocation {
    std::int64_t number = 0;  // of the allocation that failed, from 0, counted in the attempt
    MemoryEnds ends = MemoryEnds::kForOneAllocation;
    std::exception_ptr
        error;  // what was thrown; null where the attempt did without the memory: then it must have succeeded
};

/// Allocations of all threads since the process began, those that failed included.
std::int64_t allocations_made();

/// Counts as an allocation, of any thread. False where it is to fail.
bool allocation_may_succeed();

/// Between pause_failures(true) and pause_failures(false) this thread's allocations succeed and do not count:
/// for stand-ins of what keeps books in memory that a test does not mean.
void pause_failures(bool begins);

/// While one lives, the allocation that comes after `successes` others fails, and all that follow if memory
/// ends for good. Of all threads; one lives at a time.
class FailingAllocations {
public:
    explicit FailingAllocations(std::int64_t successes, MemoryEnds ends = MemoryEnds::kForOneAllocation);
    ~FailingAllocations();
    FailingAllocations(const FailingAllocations&) = delete;
    FailingAllocations& operator=(const FailingAllocations&) = delete;
    /// Whether the attempt came so far.
    [[nodiscard]] bool has_failed() const;
};

/// Whether the core and the C API may let this error out for want of memory: std::bad_alloc, or a
/// flashoptim::Error of one line.
testing::AssertionResult is_error_of_ours(const std::exception_ptr& error);
/// As is_error_of_ours; a binding's tests pass one that knows its framework's errors, too.
using MayLeave = testing::AssertionResult (*)(const std::exception_ptr& error);

/// Calls act(subject) with a new subject = make() for every allocation that it makes, which fails, and
/// check(subject, failure) behind each; twice over: memory comes back, or not. Ends when an attempt made
/// fewer allocations.
/// @return the allocations that failed; 0 says that the action allocates nothing
template <class Make, class Act, class Check>
std::int64_t fail_each_allocation(Make make, Act act, Check check, MayLeave may_leave = &is_error_of_ours) {
    constexpr std::int64_t kTooMany = 100'000;
    std::int64_t failed = 0;
    for (const auto ends : {MemoryEnds::kForOneAllocation, MemoryEnds::kForGood}) {
        for (std::int64_t number = 0;; ++number) {
            auto subject = make();
            FailedAllocation failure{number, ends, nullptr};
            bool has_failed = false;
            {
                const FailingAllocations failing(number, ends);
                try {
                    act(subject);
                } catch (...) {
                    failure.error = std::current_exception();
                }
                has_failed = failing.has_failed();
            }
            const testing::ScopedTrace trace(
                __FILE__, __LINE__,
                "allocation " + std::to_string(number) +
                    (ends == MemoryEnds::kForGood ? " and all that follow fail" : " fails"));
            if (failure.error) {
                EXPECT_TRUE(may_leave(failure.error));
            }
            if (!has_failed) {
                EXPECT_FALSE(failure.error) << "an error though no allocation failed";
                break;
            }
            check(subject, static_cast<const FailedAllocation&>(failure));
            ++failed;
            if (testing::Test::HasFailure()) return failed;  // the rest would say the same
            if (number == kTooMany) {
                ADD_FAILURE() << "more than " << kTooMany << " allocations";
                return failed;
            }
        }
    }
    return failed;
}

}  // namespace flashoptim
