// The environment variables that a run reads, checked before it begins. What they set is in the code that
// reads them.
#pragma once

namespace flashoptim::trainer {

/// Throws InvalidArgument naming the variable: FLASHOPTIM_BACKEND, which the first step would else find out,
/// and, where `threads` is 0 and so left to it, OMP_NUM_THREADS.
void check_environment(int threads);

/// The first part of it: of steps that leave the backend to the environment.
void check_backend();

}  // namespace flashoptim::trainer
