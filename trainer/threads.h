// How many threads a run computes with, and whether the system starts them.
#pragma once

namespace flashoptim::trainer {

/// As many threads as can be started beside the calling one at this moment, at most `wanted`. All have ended
/// when it returns.
int startable_threads(int wanted);

/// Throws InvalidArgument where so many threads, the calling one among them, cannot be started. Returns
/// startable_threads() of twice the others.
int require_startable(int threads);

/// Threads of LibTorch, which has them from here on, and of the optimizer, each with the calling one.
struct RunThreads {
    int torch = 1;
    int optimizer = 1;  ///< less where the system does not start as many; its bits do not depend on it
};

/// `wanted` threads; 0: as many as LibTorch takes by itself. Throws InvalidArgument where the system does not
/// start LibTorch's threads: OpenMP would end the process.
RunThreads set_threads(int wanted);

}  // namespace flashoptim::trainer
