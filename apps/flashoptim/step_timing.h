// The measurements of `flashoptim bench`: optimizer steps over generated tensors, and the present memory
// bandwidth of the machine.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "flashoptim/optimizer.h"

namespace flashoptim::app {

/// One optimizer with one matrix: bf16 weights and gradients (24-bit masters), or fp32 for all in the fp32
/// format.
class StepContestant {
public:
    StepContestant(Rule rule, Format format, Backend backend, int threads, std::int64_t parameters);
    ~StepContestant();
    StepContestant(StepContestant&&) noexcept;

    /// The bytes of weights, gradients and state.
    static std::int64_t bytes_of(Rule rule, Format format, std::int64_t parameters);

    double seconds();
    /// The bytes that one step reads and writes: state, weights and corrections twice, gradients once.
    [[nodiscard]] std::int64_t bytes_moved() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

/// Adds to a buffer in place with `threads` threads: an optimizer's memory traffic with the least arithmetic.
class BandwidthProbe {
public:
    /// The bytes of the buffer, more than any cache holds.
    static constexpr std::int64_t kBytes = std::int64_t{1} << 28;

    explicit BandwidthProbe(int threads);
    /// The bytes read and written per second.
    double bytes_per_second();

private:
    std::vector<float> buffer_;
    ThreadPool pool_;
};

double median(std::vector<double> values);

}  // namespace flashoptim::app
