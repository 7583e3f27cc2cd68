// Checks the environment variables that a run reads, before the run begins. Their effect is in the code that
// reads them.
#pragma once

namespace flashoptim::trainer {

/// Throws an InvalidArgument that names the variable: FLASHOPTIM_BACKEND, which otherwise the first step
/// would check, and OMP_NUM_THREADS if `threads` is 0 and the variable decides.
void check_environment(int threads);

/// Checks FLASHOPTIM_BACKEND alone, for steps that leave the choice of the backend to the environment.
void check_backend();

}  // namespace flashoptim::trainer
