// The worker threads of a process: how many there are, what happens where they cannot be started, and how
// they end. If these fail, a process under a limit cannot step at all, many optimizers start many threads, or
// a program crashes as it exits.
#include <dirent.h>
#include <dlfcn.h>
#if defined(__linux__)
#include <sched.h>
#endif
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "../support/step_cases.h"
#include "failing_allocations.h"
#include "failing_threads.h"

namespace flashoptim {

namespace {

/// Runs a check in a child, whose workers are its own. `leave` ends the child: exit
/// runs destructors, _exit none.
void expect_in_child(const std::function<bool()>& check, void (*leave)(int) = &::_exit) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) leave(check() ? 0 : 1);
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

#if defined(__linux__)
int live_threads() {
    int count = 0;
    auto* const folder = ::opendir("/proc/self/task");
    while (const auto* entry = ::readdir(folder)) count += entry->d_name[0] != '.' ? 1 : 0;
    ::closedir(folder);
    return count;
}
#endif

/// A tensor of many jobs.
class Training {
public:
    explicit Training(int threads) : optimizer_({.learning_rate = 1.0}, with(threads)) {
        gradient_.fill([] { return 1.0F; });
        optimizer_.add_parameter(weight_.view());
        optimizer_.set_gradient(0, gradient_.view());
    }
    void step() {
        optimizer_.step();
        ++steps_;
    }
    /// Each element was stepped as often as the optimizer.
    [[nodiscard]] bool is_right() const {
        for (const float w : weight_.values()) {
            if (w != -static_cast<float>(steps_)) return false;
        }
        return true;
    }

private:
    static OptimizerOptions with(int threads) {
        OptimizerOptions options;
        options.threads = threads;
        return options;
    }
    int steps_ = 0;
    Tensor weight_{DType::kFloat32, {500'000}}, gradient_{DType::kFloat32, {500'000}};
    SGD optimizer_;
};

}  // namespace

#if defined(__linux__)
TEST(Workers, ManyOptimizersShareThem) {
    expect_in_child([] {
        std::vector<std::unique_ptr<Training>> all;
        for (int n = 0; n < 10; ++n) {
            all.push_back(std::make_unique<Training>(3));
            all.back()->step();
            if (live_threads() != 3 || !all.back()->is_right()) return false;
        }
        Training alone(1), more(5);
        alone.step();
        if (live_threads() != 3) return false;
        more.step();
        return live_threads() == 5 && more.is_right();
    });
}

TEST(Workers, ByDefaultThereAreAsManyAsTheProcessMayUse) {
    expect_in_child([] {
        const int usable = ThreadPool().threads();
        for (int n = 0; n < 3; ++n) {
            Training training(0);
            training.step();
            if (!training.is_right() || live_threads() > usable) return false;
        }
        return true;
    });
}

// Trainers of one process may each have CPUs of their own; the workers are the same for all.
TEST(Workers, RunWhereTheirCallerMay) {
    if (ThreadPool().threads() < 2) GTEST_SKIP() << "one CPU";
    expect_in_child([] {
        cpu_set_t all;
        if (::sched_getaffinity(0, sizeof all, &all) != 0) return true;  // more CPUs than a set has
        std::vector<int> cpus;
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (CPU_ISSET(cpu, &all)) cpus.push_back(cpu);
        }
        ThreadPool pool(3);
        struct Context {
            cpu_set_t expected;
            std::atomic<int> wrong = 0;
            std::atomic<int> workers = 0;
            std::thread::id caller = std::this_thread::get_id();
        };
        const auto look = [](void* c, std::int64_t) {
            auto& context = *static_cast<Context*>(c);
            cpu_set_t own;
            ::sched_getaffinity(0, sizeof own, &own);
            if (!CPU_EQUAL(&own, &context.expected)) ++context.wrong;
            if (std::this_thread::get_id() != context.caller) {
                ++context.workers;
            } else {  // leaves jobs to those that come late
                for (int n = 0; n < 100'000 && context.workers == 0; ++n) std::this_thread::yield();
            }
        };
        for (int n = 0; n < 6; ++n) {
            Context context;
            context.expected = all;
            if (n % 3 != 2) {
                CPU_ZERO(&context.expected);
                CPU_SET(cpus[static_cast<std::size_t>(n % 3)], &context.expected);
            }
            if (::sched_setaffinity(0, sizeof context.expected, &context.expected) != 0) return false;
            pool.run(200, look, &context);
            if (context.wrong != 0 || context.workers == 0) return false;
        }
        return true;
    });
}

// Whoever asks for all threads that the system has would have none left for anything else.
TEST(Workers, ThereIsAnEndToThem) {
    expect_in_child([] {
        std::atomic<int> count = 0;
        ThreadPool pool(2'000'000'000);
        pool.run(5000, [](void* c, std::int64_t) { ++*static_cast<std::atomic<int>*>(c); }, &count);
        return count == 5000 && live_threads() <= 1024;
    });
}

// A step on fewer threads is right, and the missing ones come when they can.
TEST(Workers, ThoseThatCannotBeStartedAreDoneWithout) {
    if (!can_fail_threads()) GTEST_SKIP() << "pthread_create cannot be replaced here";
    for (const int successes : {0, 1, 2, 3}) {
        expect_in_child([&] {
            Training training(4);
            {
                const FailingThreads failing(successes);
                for (int n = 0; n < 3; ++n) training.step();
                if (!training.is_right() || live_threads() != 1 + successes) return false;
                if ((failing.refused() == 0) != (successes == 3)) return false;
            }
            training.step();
            return training.is_right() && live_threads() == 4;
        });
    }
}
#endif

// Memory for a thread may be missing, too.
TEST(Workers, WithoutMemoryForThemAStepIsRight) {
    expect_in_child([] {
        for (std::int64_t number = 0; number < 40; ++number) {
            const pid_t child = ::fork();
            if (child == 0) {
                Training training(4);
                bool threw = false;
                {
                    const FailingAllocations failing(number, MemoryEnds::kForGood);
                    try {
                        training.step();
                    } catch (const std::bad_alloc&) {
                        threw = true;
                    }
                }
                if (threw) training.step();
                ::_exit(training.is_right() ? 0 : 1);
            }
            int status = -1;
            if (::waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
                return false;
        }
        return true;
    });
}

// Static optimizers and handlers of exit() may step when the workers are gone.
TEST(Workers, StepsAtTheEndOfAProcess) {
    static std::unique_ptr<Training> last;
    expect_in_child(
        [] {
            std::atexit([] {
                last->step();
                if (!last->is_right()) ::_exit(2);
            });
            last = std::make_unique<Training>(3);
            last->step();
            return last->is_right();
        },
        &std::exit);
}

TEST(Workers, AProcessMayEndWhileAnotherThreadSteps) {
    for (int n = 0; n < 10; ++n) {
        expect_in_child(
            [] {
                static auto* const training = new Training(3);  // outlives what exit() destroys
                static std::atomic<bool> has_begun = false;
                std::thread([] {
                    for (;;) {
                        training->step();
                        has_begun = true;
                    }
                }).detach();
                while (!has_begun) std::this_thread::yield();
                return true;
            },
            &std::exit);
    }
}

#if defined(FLASHOPTIM_STEP_PLUGIN)
// Plugins of hosts are loaded and unloaded: no thread may be left in code that is gone.
TEST(Workers, AreGoneWhenTheirLibraryIsUnloaded) {
    expect_in_child([] {
        for (int n = 0; n < 5; ++n) {
            void* const plugin = ::dlopen(FLASHOPTIM_STEP_PLUGIN, RTLD_NOW | RTLD_LOCAL);
            if (plugin == nullptr) return false;
            auto* const step = reinterpret_cast<int (*)()>(::dlsym(plugin, "step_in_plugin"));
            if (step == nullptr || step() != 0 || live_threads() != 3) return false;
            if (::dlclose(plugin) != 0) return false;
            void* const still = ::dlopen(FLASHOPTIM_STEP_PLUGIN, RTLD_NOW | RTLD_NOLOAD);
            if (still == nullptr && live_threads() != 1) return false;
        }
        return true;
    });
}
#endif

}  // namespace flashoptim
