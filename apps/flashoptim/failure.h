// From an exception, whoever threw it, to an exit code and one line with a remedy. Prints it; decides nothing
// else.
#pragma once

#include <string>
#include <string_view>

namespace flashoptim::app {

/// Whether the work had begun: what is refused before it ends with another exit code than what goes wrong in
/// it.
enum class Phase { kBeforeFirstStep, kRunning };

struct Failure {
    int code;
    std::string line;  ///< without "flashoptim: " and the end of the line
};

/// What to do where memory does not suffice, in a run.
inline constexpr std::string_view kLessMemory =
    "use a smaller --model, --batch or --sequence, or --activation-checkpointing";

/// The exception that is being handled. `less_memory` is the remedy where memory does not suffice.
Failure current_failure(Phase phase, std::string_view less_memory = kLessMemory);

/// Tells the failure on stderr and returns its exit code.
int report(const Failure& failure);

}  // namespace flashoptim::app
