// Runs a program as a child process, which does not outlive this process, and waits for it.
#pragma once

#include <string>
#include <vector>

namespace flashoptim::app {

/// Which of stdout and stderr the child shares with this process. The others are discarded.
enum class Output { kBoth, kErrors, kNone };

/// How a program ended: by exit(code), or by a signal if that is not 0.
struct ProgramEnd {
    int code = 0, signal = 0;
};

/// Runs `arguments[0]` (searched in PATH if it has no slash) with the terminal of this process. The child
/// gets every signal that this process takes while a StopSignals lives, whoever sent it and whether or not
/// there is a terminal; where this process is killed, the system kills the child (Linux). Throws Error if it
/// cannot start.
ProgramEnd run_program(const std::vector<std::string>& arguments, Output output);

/// A path by which the running executable can be started again, even if another version has replaced it on
/// the disk.
std::string own_executable();

/// The folder of the running executable. Empty if unknown.
std::string own_folder();

}  // namespace flashoptim::app
