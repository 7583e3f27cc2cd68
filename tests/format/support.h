// Helpers of the tests of formats: random numbers, bit patterns, jobs on all threads. They know no number
// format.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <utility>

#include "flashoptim/step.h"

namespace flashoptim::test {

#if defined(FLASHOPTIM_STRIDED_TESTS)
constexpr bool kExhaustive = false;
#else
constexpr bool kExhaustive = true;
#endif

inline float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

/// SplitMix64 (Steele et al. 2014): the same numbers on every machine.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        state_ += 0x9E3779B97F4A7C15U;
        auto z = state_;
        z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
        return z ^ (z >> 31U);
    }
    /// In [0, 1).
    double uniform() { return static_cast<double>(next() >> 11U) * 0x1p-53; }
    /// Standard normal (Box and Muller 1958).
    double normal() {
        const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
        return radius * std::cos(2.0 * std::numbers::pi * uniform());
    }

private:
    std::uint64_t state_;
};

/// Calls job(n) for each n in [0, jobs) on all threads of the machine.
template <class Job>
void parallel_for(std::int64_t jobs, Job job) {
    ThreadPool pool;
    pool.run(jobs, [](void* context, std::int64_t n) { (*static_cast<Job*>(context))(n); }, &job);
}

/// Visits the fp32 patterns 0, stride, 2 * stride, ... on all threads and returns for how many `ok(pattern)`
/// is false; the smallest of them goes to `first_bad`.
template <class Ok>
std::uint64_t count_violations(std::uint32_t stride, std::uint32_t& first_bad, Ok ok) {
    constexpr std::int64_t kJobs = 256;
    std::atomic<std::uint64_t> violations = 0;
    std::atomic<std::uint32_t> smallest = 0xffffffffU;
    parallel_for(kJobs, [&](std::int64_t job) {
        const auto patterns = (std::uint64_t{1} << 32U) / stride;
        const auto begin = patterns * static_cast<std::uint64_t>(job) / kJobs;
        const auto end = patterns * static_cast<std::uint64_t>(job + 1) / kJobs;
        for (auto n = begin; n < end; ++n) {
            const auto pattern = static_cast<std::uint32_t>(n * stride);
            if (ok(pattern)) continue;
            ++violations;
            auto known = smallest.load();
            while (pattern < known && !smallest.compare_exchange_weak(known, pattern)) {
            }
        }
    });
    first_bad = smallest;
    return violations;
}

}  // namespace flashoptim::test
