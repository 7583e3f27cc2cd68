// The subcommands. Each adds itself to the command line; its function runs when it was chosen and returns the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace flashoptim::app {

using Command = std::function<int()>;

/// Exit codes; 0 is done.
inline constexpr int kBadInput = 2, kOtherError = 1;

/// Adds the subcommand to `parent`; `chosen` becomes its function when the arguments name it.
void add_train_command(CLI::App& parent, Command& chosen);
void add_compare_command(CLI::App& parent, Command& chosen);
void add_bench_command(CLI::App& parent, Command& chosen);

}  // namespace flashoptim::app
