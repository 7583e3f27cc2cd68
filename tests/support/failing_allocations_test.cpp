// The failing allocations that other tests use. If these fail, those show nothing.
#include "failing_allocations.h"

#include <sys/mman.h>

#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "flashoptim/error.h"

namespace flashoptim {

namespace {

struct alignas(128) Aligned {
    char bytes[128];
};

const void* volatile seen = nullptr;  // or the compiler leaves out what nobody looks at

template <class T>
bool is_there(const std::unique_ptr<T>& memory) {
    seen = memory.get();
    return memory != nullptr;
}

}  // namespace

TEST(FailingAllocations, EveryKindOfAllocationFailsAndIsCounted) {
    const auto attempt = [](auto allocate) {
        const auto before = allocations_made();
        EXPECT_TRUE(allocate());
        EXPECT_EQ(allocations_made() - before, 1);
        const FailingAllocations failing(0);
        bool succeeded = true;
        try {
            succeeded = allocate();
        } catch (const std::bad_alloc&) {
            succeeded = false;
        }
        EXPECT_FALSE(succeeded);
        EXPECT_TRUE(failing.has_failed());
        EXPECT_TRUE(allocate());
    };
    attempt([] { return is_there(std::make_unique<int>()); });
    attempt([] { return is_there(std::make_unique<int[]>(7)); });
    attempt([] { return is_there(std::make_unique<Aligned>()); });
    attempt([] { return is_there(std::make_unique<Aligned[]>(2)); });
    attempt([] { return is_there(std::unique_ptr<int>(new (std::nothrow) int)); });
    attempt([] { return is_there(std::unique_ptr<Aligned>(new (std::nothrow) Aligned)); });
    attempt([] { return allocation_may_succeed(); });
#if defined(__linux__)
    attempt([] {
        void* pages = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) return false;
        static_cast<char*>(pages)[4095] = 1;
        return ::munmap(pages, 4096) == 0;
    });
#endif
}

TEST(FailingAllocations, EachAllocationFailsOnceAndThenWithAllThatFollow) {
    using Three = std::vector<std::unique_ptr<int>>;
    std::vector<std::size_t> kept;
    const auto failed = fail_each_allocation(
        [] {
            Three three;
            three.reserve(3);
            return three;
        },
        [](Three& three) {
            while (three.size() < 3) three.push_back(std::make_unique<int>());
        },
        [&](const Three& three, const FailedAllocation& failure) {
            EXPECT_TRUE(failure.error);
            EXPECT_EQ(three.size(), static_cast<std::size_t>(failure.number));
            kept.push_back(three.size());
        });
    EXPECT_EQ(failed, 6);
    EXPECT_EQ(kept, (std::vector<std::size_t>{0, 1, 2, 0, 1, 2}));
}

TEST(FailingAllocations, OnlyErrorsOfOursMayLeave) {
    EXPECT_TRUE(is_error_of_ours(std::make_exception_ptr(std::bad_alloc())));
    EXPECT_TRUE(is_error_of_ours(std::make_exception_ptr(IoError("one line"))));
    EXPECT_FALSE(is_error_of_ours(std::make_exception_ptr(IoError("two\nlines"))));
    EXPECT_FALSE(is_error_of_ours(std::make_exception_ptr(std::length_error("vector"))));
    EXPECT_FALSE(is_error_of_ours(std::make_exception_ptr(7)));
}

}  // namespace flashoptim
