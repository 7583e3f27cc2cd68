// The neon backend: instantiates every kernel for its lanes. The flags of this
// file are in src/CMakeLists.txt.
#define FLASHOPTIM_ISA isa_neon
#include "step/instantiate.h"
#include "step/lanes/neon.h"

namespace flashoptim {

BackendKernels neon_backend() { return backend_of<NeonLanes>(); }

}  // namespace flashoptim
