#include "failing_threads.h"

#include <atomic>
#include <cstdlib>
#include <limits>

#if defined(__GLIBC__)
#include <dlfcn.h>
#include <pthread.h>

#include <cerrno>
#endif

namespace flashoptim {

namespace {

constexpr int kAll = std::numeric_limits<int>::max();

std::atomic<int> left = kAll, refused_threads = 0;

#if defined(__GLIBC__)
using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);

Create next_create() {
    static const auto create = reinterpret_cast<Create>(::dlsym(RTLD_NEXT, "pthread_create"));
    return create;
}
#endif

}  // namespace

bool can_fail_threads() {
#if defined(__GLIBC__)
    return true;
#else
    return false;
#endif
}

FailingThreads::FailingThreads(int successes) {
    refused_threads = 0;
    left = successes;
}
FailingThreads::~FailingThreads() { left = kAll; }
int FailingThreads::refused() const { return refused_threads; }

#if defined(__GLIBC__)
int created(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
    if (left == 0) {
        ++refused_threads;
        return EAGAIN;
    }
    if (left != kAll) --left;
    return next_create()(thread, attributes, run, argument);
}
#endif

}  // namespace flashoptim

#if defined(__GLIBC__)
extern "C" int flashoptim_failing_create(pthread_t* thread, const pthread_attr_t* attributes,
                                         void* (*run)(void*), void* argument) __asm__("pthread_create");
extern "C" int flashoptim_failing_create(pthread_t* thread, const pthread_attr_t* attributes,
                                         void* (*run)(void*), void* argument) {
    return flashoptim::created(thread, attributes, run, argument);
}
#endif
