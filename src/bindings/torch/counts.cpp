// Counts that may still be on a device: bad elements, and steps if found_inf may have skipped some.
#include <limits>
#include <map>
#include <vector>

#include "optimizer_impl.h"

namespace flashoptim::libtorch {

namespace {

/// A sum that saturates at the largest number instead of overflowing.
std::int64_t saturated_sum(std::int64_t count, std::uint64_t more) {
    constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
    const auto left = static_cast<std::uint64_t>(kMost - count);
    return more < left ? count + static_cast<std::int64_t>(more) : kMost;
}

}  // namespace

void OptimizerImpl::count_bad(const void* key, std::uint64_t count) const noexcept {
    const auto found = parameters_.find(key);
    auto* const state = found == parameters_.end() ? nullptr : state_of(found->second);
    if (state != nullptr) state->bad_elements(saturated_sum(state->bad_elements(), count));
}

void OptimizerImpl::collect_counts() {
    if (may_count_bad_) {
        const auto collect = [this](DeviceList& list) {
            if (list) list->collect([this](const void* key, std::uint64_t count) { count_bad(key, count); });
        };
        for (auto& [index, list] : device_lists_) collect(list);
        for (auto& [key, parameter] : parameters_) {
            ++visits;
            collect(parameter.alone);
        }
        may_count_bad_ = false;
    }
    collect_steps();
}

void OptimizerImpl::count_on_device(std::vector<StepBatch>& batches) {
    for (auto& batch : batches) {
        const bool may_be_kept_back = batch.here.found_inf.defined();
        bool counts = false;
        for (auto* parameter : batch.parameters) {
            if (may_be_kept_back && !parameter->counts_on_device) {
                if (parameter->steps_done.defined()) {
                    parameter->steps_done.zero_();
                } else {
                    parameter->steps_done =
                        torch::zeros({}, torch::dtype(torch::kInt64).device(batch.device));
                }
                may_count_steps_ = true;
                parameter->counts_on_device = true;
            }
            counts = counts || parameter->counts_on_device;
        }
        if (!counts) continue;
        for (const auto* parameter : batch.parameters) {
            batch.steps_done.push_back(parameter->counts_on_device
                                           ? parameter->steps_done.mutable_data_ptr<std::int64_t>()
                                           : nullptr);
        }
    }
}

void OptimizerImpl::collect_steps() {
    if (!may_count_steps_) return;
    struct Counting {
        std::vector<Parameter*> parameters;
        torch::Tensor done;
    };
    std::map<torch::DeviceIndex, Counting> counting;
    for (auto& [key, parameter] : parameters_) {
        ++visits;
        if (parameter.counts_on_device)
            counting[parameter.steps_done.device().index()].parameters.push_back(&parameter);
    }
    for (auto& [index, of_device] : counting) {
        std::vector<torch::Tensor> counters;
        for (const auto* parameter : of_device.parameters) counters.push_back(parameter->steps_done);
        of_device.done = torch::stack(counters).to(torch::kCPU);
    }
    // Nothing below can fail.
    for (auto& [index, of_device] : counting) {
        const auto* done = of_device.done.const_data_ptr<std::int64_t>();
        for (auto* parameter : of_device.parameters) {
            const auto steps = *done++;
            auto* const state = state_of(*parameter);
            if (state != nullptr && steps != 0) {
                state->step(saturated_sum(state->step(), static_cast<std::uint64_t>(steps)));
                if (state->at(codes_place(0)).defined()) state->has_momentum(true);
            }
            parameter->counts_on_device = false;
        }
    }
    may_count_steps_ = false;
}

}  // namespace flashoptim::libtorch
