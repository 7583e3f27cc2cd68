// Runs a program as a child process that does not outlive this one, and waits for it.
#pragma once

#include <string>
#include <vector>

namespace flashoptim::app {

/// Which of the child's standard output and errors are those of this process; the rest is thrown away.
enum class Output { kBoth, kErrors, kNone };

/// How a program ended: by exit(code), or by a signal (then that is not 0).
struct ProgramEnd {
    int code = 0, signal = 0;
};

/// Runs `arguments[0]` (searched in PATH if it has no slash) with the terminal of this process. The child
/// gets every signal that this process takes while a StopSignals lives, whoever sent it and whether or not
/// there is a terminal; where this process is killed, the system kills the child (Linux). Throws Error if it
/// cannot start.
ProgramEnd run_program(const std::vector<std::string>& arguments, Output output);

/// Path under which the running executable can be started again, also where another version took its place on
/// the disk.
std::string own_executable();

/// The folder that the running executable lies in; empty if it cannot be told.
std::string own_folder();

}  // namespace flashoptim::app
