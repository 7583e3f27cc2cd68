// The learning rate as a function of the step. Knows no optimizer.
#pragma once

#include <cstdint>
#include <string_view>

namespace flashoptim::trainer {

enum class ScheduleKind : std::uint8_t { kConstant, kCosine, kLinear };

/// Throws InvalidArgument naming the known ones.
ScheduleKind parse_schedule(std::string_view name);
std::string_view schedule_name(ScheduleKind kind);

/// Linear warm-up, then constant or a decay to `minimum_ratio` times the peak.
struct Schedule {
    ScheduleKind kind = ScheduleKind::kCosine;
    double peak = 1e-3;          ///< learning rate at the end of the warm-up
    double minimum_ratio = 0.1;  ///< of the peak, reached after the last step; unused by kConstant
    std::int64_t warmup_steps = 0;
    std::int64_t total_steps = 1;

    /// Learning rate of step `step`, counted from 0: peak * (step + 1) / warmup_steps in the warm-up, then
    /// with p = (step - warmup) / (total - warmup): minimum + (peak - minimum) * (1 + cos(pi p)) / 2, or * (1
    /// - p) for kLinear. As with PyTorch's CosineAnnealingLR (T_max = total - warmup) and LinearLR, the
    /// minimum is that of step `total`, the one after the last.
    double at(std::int64_t step) const;
};

/// Throws InvalidArgument naming the first field that makes no schedule.
void validate(const Schedule& schedule);

}  // namespace flashoptim::trainer
