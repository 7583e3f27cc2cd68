#include "failing_allocations.h"

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "flashoptim/error.h"

namespace flashoptim {

namespace {

constexpr std::int64_t kNever = -1;

std::atomic<std::int64_t> made = 0;
std::atomic<std::int64_t> failing_from = kNever;  // the number of the first that fails
std::atomic<bool> fails_for_good = false, has_failed_once = false;
thread_local int paused = 0;

void* allocated(std::size_t bytes, std::size_t alignment) noexcept {
    if (!allocation_may_succeed()) return nullptr;
    if (alignment <= alignof(std::max_align_t)) return std::malloc(bytes != 0 ? bytes : 1);
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void* allocated_or_thrown(std::size_t bytes, std::size_t alignment) {
    if (void* memory = allocated(bytes, alignment)) return memory;
    throw std::bad_alloc();
}

}  // namespace

std::int64_t allocations_made() { return made; }

void pause_failures(bool begins) { paused += begins ? 1 : -1; }

bool allocation_may_succeed() {
    if (paused != 0) return true;
    const auto number = made.fetch_add(1);
    const auto first = failing_from.load();
    const bool fails = first != kNever && (number == first || (number > first && fails_for_good));
    if (fails) has_failed_once = true;
    return !fails;
}

FailingAllocations::FailingAllocations(std::int64_t successes, MemoryEnds ends) {
    fails_for_good = ends == MemoryEnds::kForGood;
    has_failed_once = false;
    failing_from = made + successes;
}
FailingAllocations::~FailingAllocations() { failing_from = kNever; }
bool FailingAllocations::has_failed() const { return has_failed_once; }

testing::AssertionResult is_error_of_ours(const std::exception_ptr& error) {
    try {
        std::rethrow_exception(error);
    } catch (const std::bad_alloc&) {
        return testing::AssertionSuccess();
    } catch (const Error& ours) {
        if (std::string(ours.what()).find('\n') == std::string::npos) return testing::AssertionSuccess();
        return testing::AssertionFailure() << "an error of more than one line: " << ours.what();
    } catch (const std::exception& other) {
        return testing::AssertionFailure()
               << "neither std::bad_alloc nor flashoptim::Error: " << other.what();
    } catch (...) {
        return testing::AssertionFailure() << "not even a std::exception";
    }
}

}  // namespace flashoptim

using flashoptim::allocated;
using flashoptim::allocated_or_thrown;

void* operator new(std::size_t bytes) { return allocated_or_thrown(bytes, 1); }
void* operator new[](std::size_t bytes) { return allocated_or_thrown(bytes, 1); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
    return allocated_or_thrown(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
    return allocated_or_thrown(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocated(bytes, 1); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return allocated(bytes, 1); }
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
    return allocated(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
    return allocated(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }

#if defined(__linux__) && defined(SYS_mmap) && !defined(__SANITIZE_THREAD__)
// The C library's name: its own calls of mmap, malloc's among them, do not come here. The thread sanitizer
// has a function of that name of its own.
extern "C" void* flashoptim_failing_mmap(void* address, std::size_t bytes, int protection, int flags,
                                         int file, off_t offset) __asm__("mmap");
extern "C" void* flashoptim_failing_mmap(void* address, std::size_t bytes, int protection, int flags,
                                         int file, off_t offset) {
    if (!flashoptim::allocation_may_succeed()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    // NOLINTNEXTLINE(performance-no-int-to-ptr): what the system call returns
    return reinterpret_cast<void*>(::syscall(SYS_mmap, address, bytes, protection, flags, file, offset));
}
#endif
