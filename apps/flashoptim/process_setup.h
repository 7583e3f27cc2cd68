// The process as every subcommand needs it: its standard descriptors, and signals of writes. What asks it to
// stop is in stop_signals.h.
#pragma once

namespace flashoptim::app {

/// What every subcommand and child process needs, called first in main():
/// - descriptors 0 to 2 are open, so that no file of a run takes the place of a stderr that was
///   closed and gets its messages;
/// - as many files may be open as the system allows at most, since a data set may have many;
/// - a reader that goes away and a limit on the size of files are errors of a write and end
///   nothing (SIGPIPE, SIGXFSZ).
void prepare_process();

/// Whether the descriptor was closed when the process started.
bool was_closed(int descriptor);

/// In a child process before it becomes another program: its writes end it again as they would have ended
/// this one.
void restore_write_signals() noexcept;

/// Ends the process as SIGPIPE does, if whoever started it wants that. A reader of results that has read
/// enough is no error.
void end_by_broken_pipe();

}  // namespace flashoptim::app
