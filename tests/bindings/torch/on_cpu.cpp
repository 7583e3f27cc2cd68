// What the tests in this folder expect of steps on the CPU; on_cuda_test.cpp has
// the same for the CUDA backend.
#include "support.h"

namespace flashoptim::libtorch {

std::uint64_t reported_at_once(std::uint64_t count) { return count; }

}  // namespace flashoptim::libtorch
