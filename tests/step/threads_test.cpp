// What is promised of threads, small enough for the thread sanitizer. If these fail, two models in one
// process corrupt each other.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <memory>
#include <thread>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../support/step_cases.h"

namespace flashoptim {

namespace {

OptimizerOptions with_threads(int threads) {
    OptimizerOptions options;
    options.threads = threads;
    return options;
}

/// Ten steps of AdamW over one tensor that takes three chunks.
std::vector<std::byte> train(std::uint64_t seed, int threads) {
    Noise noise(seed);
    Tensor weight(DType::kBFloat16, {300, 256}), gradient(DType::kBFloat16, {300, 256});
    weight.fill([&] { return noise.normal(); });
    AdamW optimizer({}, with_threads(threads));
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    for (int t = 0; t < 10; ++t) {
        gradient.fill([&] { return noise.normal(); });
        optimizer.set_gradient_factor(1.0 / (1.0 + optimizer.grad_norm()));
        optimizer.step();
    }
    return bytes_of_numbers(optimizer);
}

}  // namespace

TEST(Threads, TwoOptimizersInTwoThreads) {
    const auto expected_a = train(1, 1), expected_b = train(2, 1);
    std::vector<std::byte> a, b;
    std::thread first([&] { a = train(1, 2); }), second([&] { b = train(2, 3); });
    first.join();
    second.join();
    EXPECT_TRUE(a == expected_a);
    EXPECT_TRUE(b == expected_b);
}

// All share the process's workers, those with one pool its workspace, too.
TEST(Threads, ManyCallersAtOnce) {
    const auto expected = train(4, 1);
    ThreadPool pool(3);
    std::atomic<int> wrong = 0;
    const auto run = [&](int threads) {
        for (int n = 0; n < 2; ++n) {
            if (train(4, threads) != expected) ++wrong;
            std::atomic<int> done = 0;
            pool.run(
                50, [](void* count, std::int64_t) { static_cast<std::atomic<int>*>(count)->fetch_add(1); },
                &done);
            if (done != 50) ++wrong;
        }
    };
    std::vector<std::thread> callers;
    for (const int threads : {0, 2, 3, 17}) callers.emplace_back(run, threads);
    for (auto& caller : callers) caller.join();
    EXPECT_EQ(wrong, 0);
}

// Steps of the same pool from several threads: each has a workspace of its own.
TEST(Threads, OnePoolForSeveralLists) {
    constexpr int kLists = 4;
    const auto plan_of = [](const Layout& layout) {
        return plan_storage(Rule::kLion, {}, {Format::kNative, 24, true, 0, 0}, DType::kBFloat16, layout);
    };
    struct List {
        Tensor weight{DType::kBFloat16, {200, 320}}, gradient{DType::kBFloat16, {200, 320}};
        Layout layout = layout_of(weight.view());
        std::vector<std::byte> correction, codes;
        std::vector<std::uint16_t> scales;
        StepItem item;
    };
    const auto stepped = [&](List& list, ThreadPool& pool, std::int64_t steps) {
        for (std::int64_t t = 1; t <= steps; ++t) {
            list.item.step = t;
            step({&list.item, 1}, pool);
        }
    };
    const auto make = [&](List& list) {
        Noise noise(9);
        list.gradient.fill([&] { return noise.even(); });
        list.item.layout = &list.layout;
        list.item.plan = plan_of(list.layout);
        list.correction.resize(list.item.plan.correction().bytes());
        list.codes.resize(list.item.plan.codes(0).bytes());
        list.scales.resize(static_cast<std::size_t>(list.item.plan.scales(0).count));
        list.item.weight = list.weight.view().data;
        list.item.state = {list.correction.data(), list.codes.data(), list.scales.data(), nullptr, nullptr};
        list.item.gradient = list.gradient.view().data;
        list.item.gradient_dtype = DType::kBFloat16;
        list.item.rule = Rule::kLion;
    };
    ThreadPool pool(3), alone(1);
    List expected;
    make(expected);
    stepped(expected, alone, 5);
    std::vector<List> lists(kLists);
    std::vector<std::thread> callers;
    for (auto& list : lists) {
        make(list);
        callers.emplace_back([&] { stepped(list, pool, 5); });
    }
    for (auto& caller : callers) caller.join();
    for (const auto& list : lists) {
        EXPECT_TRUE(list.weight.bytes() == expected.weight.bytes());
        EXPECT_TRUE(list.codes == expected.codes);
    }
}

TEST(Threads, OneOptimizerWithManyThreads) { EXPECT_TRUE(train(3, 8) == train(3, 1)); }

TEST(Threads, OneOptimizerHandedFromThreadToThread) {
    Tensor weight(DType::kFloat32, {100000}), gradient(DType::kFloat32, {100000});
    gradient.fill([] { return 1.0F; });
    SGD optimizer({.learning_rate = 1.0}, with_threads(3));
    optimizer.add_parameter(weight.view());
    optimizer.set_gradient(0, gradient.view());
    for (int n = 0; n < 4; ++n) std::thread([&] { optimizer.step(); }).join();
    EXPECT_EQ(weight.get(0), -4.0F);
    EXPECT_EQ(weight.get(99999), -4.0F);
}

TEST(Threads, APoolRunsEveryJobOnce) {
    for (const int threads : {1, 2, 3, 8}) {
        ThreadPool pool(threads);
        EXPECT_EQ(pool.threads(), threads);
        for (const std::int64_t jobs : {0, 1, 2, 7, 1000}) {
            std::vector<std::atomic<int>> done(static_cast<std::size_t>(jobs));
            pool.run(
                jobs,
                [](void* context, std::int64_t n) {
                    (*static_cast<std::vector<std::atomic<int>>*>(context))[static_cast<std::size_t>(n)]
                        .fetch_add(1);
                },
                &done);
            for (const auto& count : done) EXPECT_EQ(count.load(), 1);
        }
    }
}

// A pool that is called from its own job, or by two threads at once, works alone
// instead of waiting for itself.
TEST(Threads, ABusyPoolDoesNotDeadlock) {
    struct Context {
        ThreadPool pool{4};
        std::atomic<int> done{0};
    } context;
    const auto inner = [](void* c, std::int64_t) { static_cast<Context*>(c)->done.fetch_add(1); };
    const auto outer = [](void* c, std::int64_t) {
        auto& own = *static_cast<Context*>(c);
        own.pool.run(5, [](void* d, std::int64_t) { static_cast<Context*>(d)->done.fetch_add(1); }, c);
    };
    context.pool.run(6, outer, &context);
    EXPECT_EQ(context.done.load(), 30);
    std::thread first([&] { context.pool.run(100, inner, &context); });
    context.pool.run(100, inner, &context);
    first.join();
    EXPECT_EQ(context.done.load(), 230);
}

// torch.set_flush_denormal, -ffast-math and fesetround change the mode of one thread; the bits must
// not depend on which one steps.
TEST(Threads, TheCallersFloatingPointModeChangesNothing) {
    Noise noise(8);
    const Tensor start = [&] {
        Tensor t(DType::kFloat16, {200, 512});
        t.fill([&] { return 1e-6F * noise.normal(); });  // subnormal in fp16
        return t;
    }();
    Tensor gradient(DType::kFloat16, {200, 512});
    gradient.fill([&] { return 1e-5F * noise.normal(); });
    const auto run = [&](int threads) {
        Tensor weight = start;
        AdamW optimizer({}, with_threads(threads));
        optimizer.add_parameter(weight.view());
        optimizer.set_gradient(0, gradient.view());
        optimizer.set_gradient_factor(1.0 / 3.0);
        for (int t = 0; t < 3; ++t) optimizer.step();
        auto bytes = bytes_of_numbers(optimizer);
        const auto append = [&](const auto* values, std::size_t count) {
            const auto* begin = reinterpret_cast<const std::byte*>(values);
            bytes.insert(bytes.end(), begin, begin + count * sizeof *values);
        };
        const auto masters = optimizer.master(0);
        append(masters.data(), masters.size());
        const double norm = optimizer.grad_norm();
        append(&norm, 1);
        return bytes;
    };
    const auto expected = run(1);
    for (const int threads : {1, 3}) {
        ASSERT_EQ(std::fesetround(FE_UPWARD), 0);
#if defined(__SSE2__)
        const unsigned mode = _mm_getcsr();
        _mm_setcsr(mode | 0x8040U);  // flush to zero, subnormals are zero
#endif
        const auto bytes = run(threads);
#if defined(__SSE2__)
        EXPECT_EQ(_mm_getcsr() & 0xffc0U, (mode | 0x8040U) & 0xffc0U) << "the caller's mode was not put back";
        _mm_setcsr(mode);
#endif
        EXPECT_EQ(std::fegetround(), FE_UPWARD);
        std::fesetround(FE_TONEAREST);
        EXPECT_TRUE(bytes == expected) << threads << " threads";
    }
}

#if !defined(__SANITIZE_THREAD__)
// Data loaders and servers fork; the child has the optimizer but none of its threads.
TEST(Threads, AnOptimizerStepsInAForkedChild) {
    Tensor weight(DType::kFloat32, {200000}), gradient(DType::kFloat32, {200000});
    gradient.fill([] { return 1.0F; });
    auto optimizer = std::make_unique<SGD>(SGDHyperparameters{.learning_rate = 1.0}, with_threads(3));
    optimizer->add_parameter(weight.view());
    optimizer->set_gradient(0, gradient.view());
    optimizer->step();
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        optimizer->step();
        const bool is_right = weight.get(0) == -2.0F && weight.get(199999) == -2.0F;
        optimizer.reset();
        ::_exit(is_right ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    optimizer->step();
    EXPECT_EQ(weight.get(199999), -2.0F);
}

// A pool serves any number of threads; those of a child may be the first that use it there, all at once.
TEST(Threads, SeveralThreadsOfAForkedChildShareAPool) {
    constexpr int kThreads = 6, kRounds = 20, kJobs = 8;
    const auto add_one = [](void* count, std::int64_t) { ++*static_cast<std::atomic<int>*>(count); };
    for (const bool is_busy : {false, true}) {
        for (int n = 0; n < 50; ++n) {
            struct Context {
                ThreadPool pool{3};
                std::atomic<int> count = 0;
                pid_t child = -1;
            } context;
            const auto fork_and_step = [](void* c, std::int64_t) {
                static_cast<Context*>(c)->child = ::fork();
            };
            if (is_busy) {  // a job that forks: the child has a copy of a pool that serves it
                context.pool.run(1, fork_and_step, &context);
            } else {
                context.pool.run(kJobs, add_one, &context.count);
                context.child = ::fork();
            }
            ASSERT_GE(context.child, 0);
            if (context.child == 0) {
                context.count = 0;
                std::atomic<int> ready = 0;
                std::vector<std::thread> threads;
                for (int t = 0; t < kThreads; ++t) {
                    threads.emplace_back([&] {
                        for (++ready; ready < kThreads;) std::this_thread::yield();
                        for (int r = 0; r < kRounds; ++r) context.pool.run(kJobs, add_one, &context.count);
                    });
                }
                for (auto& thread : threads) thread.join();
                ::_exit(context.count == kThreads * kRounds * kJobs ? 0 : 1);
            }
            int status = -1;
            ASSERT_EQ(::waitpid(context.child, &status, 0), context.child);
            ASSERT_EQ(status, 0) << is_busy;
        }
    }
}
#endif

}  // namespace flashoptim
