// Learning rate schedules. Knows no optimizer.
#include "trainer/schedule.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>

#include "flashoptim/error.h"
#include "trainer/limits.h"

namespace flashoptim::trainer {
namespace {

constexpr std::array<std::pair<std::string_view, ScheduleKind>, 3> kNames = {{
    {"constant", ScheduleKind::kConstant},
    {"cosine", ScheduleKind::kCosine},
    {"linear", ScheduleKind::kLinear},
}};

}  // namespace

ScheduleKind parse_schedule(std::string_view name) {
    for (const auto& [known, kind] : kNames) {
        if (known == name) {
            return kind;
        }
    }
    throw InvalidArgument("schedule '" + std::string(name) +
                          "' is not known; choose constant, cosine or linear");
}

std::string_view schedule_name(ScheduleKind kind) {
    return std::find_if(kNames.begin(), kNames.end(), [&](const auto& entry) { return entry.second == kind; })
        ->first;
}

double Schedule::at(std::int64_t step) const {
    if (step < warmup_steps) {
        return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
    }
    if (kind == ScheduleKind::kConstant) {
        return peak;
    }
    const double progress =
        std::min(1.0, static_cast<double>(step - warmup_steps) /
                          static_cast<double>(std::max<std::int64_t>(1, total_steps - warmup_steps)));
    const double share =
        kind == ScheduleKind::kLinear ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
    const double minimum = peak * minimum_ratio;
    return minimum + (peak - minimum) * share;
}

void validate(const Schedule& schedule) {
    require_within("--lr", schedule.peak);
    require_within("--min-lr-ratio", schedule.minimum_ratio);
    require_within("--steps", schedule.total_steps);
    require_within("--warmup", schedule.warmup_steps);
    if (schedule.warmup_steps > schedule.total_steps) {
        throw InvalidArgument("the warm-up has " + std::to_string(schedule.warmup_steps) +
                              " steps; it must lie between 0 and the number of steps, " +
                              std::to_string(schedule.total_steps));
    }
}

}  // namespace flashoptim::trainer
