// Measures the hooks that run after gradient accumulation. With gradient release this is the optimizer's
// time, which is spent inside backward. Knows no optimizer and no model.
#pragma once

#include <memory>
#include <vector>

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::trainer {

/// Measures the hooks that the parameters have when the timer is made. The owner of the hooks must outlive
/// the timer. The destructor restores the hooks. Not thread-safe: for backward passes on the CPU, which run
/// on one thread and whose work is done when a hook returns.
class HookTimer {
public:
    explicit HookTimer(const std::vector<torch::Tensor>& parameters);
    ~HookTimer();
    HookTimer(const HookTimer&) = delete;
    HookTimer& operator=(const HookTimer&) = delete;

    /// Seconds since the last call.
    double take_seconds();

private:
    std::vector<torch::Tensor> parameters_;
    std::shared_ptr<double> seconds_;
};

}  // namespace flashoptim::trainer
