// What `flashoptim bench` measures: optimizer steps over made-up tensors, and the bandwidth that the machine
// has at that moment.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "flashoptim/optimizer.h"

namespace flashoptim::app {

/// One optimizer over one matrix: bf16 weights and gradients (24-bit masters), or fp32 throughout in the fp32
/// format.
class StepContestant {
public:
    StepContestant(Rule rule, Format format, Backend backend, int threads, std::int64_t parameters);
    ~StepContestant();
    StepContestant(StepContestant&&) noexcept;

    /// Bytes of the weights, gradients and state of one.
    static std::int64_t bytes_of(Rule rule, Format format, std::int64_t parameters);

    double seconds();
    /// Bytes that one step reads and writes: state, weights and corrections both ways, gradients once.
    [[nodiscard]] std::int64_t bytes_moved() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

/// Adds to a buffer in place on `threads` threads: the memory traffic of an optimizer with the least to
/// compute.
class BandwidthProbe {
public:
    /// Of its buffer: more than any cache holds.
    static constexpr std::int64_t kBytes = std::int64_t{1} << 28;

    explicit BandwidthProbe(int threads);
    /// Bytes read and written per second.
    double bytes_per_second();

private:
    std::vector<float> buffer_;
    ThreadPool pool_;
};

double median(std::vector<double> values);

}  // namespace flashoptim::app
