// How long the hooks after gradient accumulation take: with gradient release that is the optimizer's time,
// spent inside backward. Knows no optimizer and no model.
#pragma once

#include <memory>
#include <vector>

#include "flashoptim/libtorch_headers.h"

namespace flashoptim::trainer {

/// Measures the hooks that the parameters have when it is made; whoever set them must outlive it. Its
/// destructor leaves them as they were. Not thread-safe: for backward passes on the CPU, which run on one
/// thread and have done their work when a hook returns.
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
