// Checks before a run begins: the environment variables that it reads, and how many files it may open. The
// effect of the variables is in the code that reads them.
#pragma once

namespace flashoptim::trainer {

/// Throws an InvalidArgument that names the variable: FLASHOPTIM_BACKEND, which otherwise the first step
/// would check, OMP_NUM_THREADS if `threads` is 0 and the variable decides, and OMP_STACKSIZE if `threads` is
/// not 1.
void check_environment(int threads);

/// Checks FLASHOPTIM_BACKEND alone, for steps that leave the choice of the backend to the environment.
void check_backend();

/// Throws IoError if this process may not open as many files as a run needs at once beside its data. Otherwise
/// only the first checkpoint would find out.
void require_open_files();

}  // namespace flashoptim::trainer
