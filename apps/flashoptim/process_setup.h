// Prepares the process for any subcommand: standard descriptors, and signals caused by writes. Signals that
// ask the process to stop are in stop_signals.h.
#pragma once

namespace flashoptim::app {

/// What every subcommand and child process needs, called first in main():
/// - descriptors 0 to 2 are open, so that no file of a run takes the place of a stderr that was
///   closed and gets its messages;
/// - as many files may be open as the system allows at most, since a data set may have many;
/// - a reader that goes away and a limit on the size of files are errors of a write and end
///   nothing (SIGPIPE, SIGXFSZ).
void prepare_process();

/// Whether that was done: main() has begun, and with it what can report an error.
bool is_prepared();

/// Whether the descriptor was closed when the process started.
bool was_closed(int descriptor);

/// Call this in a child process before exec: restores the signals of writes that the parent had at its start.
void restore_write_signals() noexcept;

/// Ends the process as SIGPIPE would, unless the parent process ignores SIGPIPE. It is no error if the reader
/// of results has read enough.
void end_by_broken_pipe();

}  // namespace flashoptim::app
