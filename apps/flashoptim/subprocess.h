// Runs a program as a child process and waits for it.
#pragma once

#include <string>
#include <vector>

namespace flashoptim::app {

/// Whether the child's standard output is that of this process or is thrown away; errors and progress are always shown.
enum class Output { kShown, kDropped };

/// Runs `arguments[0]` (searched in PATH if it has no slash) with the terminal of this process. Returns its exit code, or
/// 128 + signal if one ended it. An interrupt reaches the child too, as both belong to one process group. Throws Error if it
/// cannot start.
int run_program(const std::vector<std::string>& arguments, Output output = Output::kShown);

/// Path of the running executable.
std::string own_executable();

}  // namespace flashoptim::app
