// Checks the environment variables that a run reads, and the files that it may open, before the run begins. The
// effect of the variables is in the code that reads them.
#pragma once

namespace flashoptim::trainer {

/// Throws an InvalidArgument that names the variable: FLASHOPTIM_BACKEND, which otherwise the first step
/// would check, OMP_NUM_THREADS if `threads` is 0 and the variable decides, and OMP_STACKSIZE if `threads` is
/// not 1.
void check_environment(int threads);

/// Checks FLASHOPTIM_BACKEND alone, for steps that leave the choice of the backend to the environment.
void check_backend();

/// Throws IoError where the system does not let this process open the files that a run needs at once beside its
/// data: its first checkpoint would be the first to find that out.
void require_open_files();

}  // namespace flashoptim::trainer
