// The subcommands and the meaning of their exit codes. Each subcommand adds itself to the command line. If it
// is chosen, its function runs and returns the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace flashoptim::app {

using Command = std::function<int()>;

/// Exit codes, which kExitCodes explains to users.
inline constexpr int kDone = 0, kOtherError = 1, kBadInput = 2, kNotFinite = 3;

inline constexpr const char* kExitCodes =
    "Exit codes (an error is one line on stderr, which names the thing and the remedy):\n"
    "  0 done\n"
    "  1 ended early: stopped by a signal, its checkpoint written, or out of memory in the middle of the "
    "run\n"
    "  2 bad usage or bad input, refused before the first step; a file or output that cannot be written\n"
    "  3 the loss, a weight or half of a gradient was not finite; the last good checkpoint stays";

/// Adds the subcommand to `parent`. Sets `chosen` to its function if the arguments name it.
void add_train_command(CLI::App& parent, Command& chosen);
void add_compare_command(CLI::App& parent, Command& chosen);
void add_bench_command(CLI::App& parent, Command& chosen);

}  // namespace flashoptim::app
