// Turns any exception into an exit code and one line with a remedy, and prints the line. Decides nothing
// else.
#pragma once

#include <string>
#include <string_view>

namespace flashoptim::app {

/// Whether the work had begun. A refusal before the work has another exit code than a failure during it.
enum class Phase { kBeforeFirstStep, kRunning };

struct Failure {
    int code;
    std::string line;  ///< without "flashoptim: " and the end of the line
};

/// The remedy if a run has too little memory.
inline constexpr std::string_view kLessMemory =
    "use a smaller --model, --batch or --sequence, or --activation-checkpointing";

/// Describes the exception that is being handled. `less_memory` is the remedy for too little memory.
Failure current_failure(Phase phase, std::string_view less_memory = kLessMemory);

/// Prints the failure to stderr and returns its exit code.
int report(const Failure& failure);

}  // namespace flashoptim::app
