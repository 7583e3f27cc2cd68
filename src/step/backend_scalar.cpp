// The scalar backend: instantiates every kernel for its lanes. The flags of this
// file are in src/CMakeLists.txt.
#define FLASHOPTIM_ISA isa_scalar
#include "flashoptim/numeric/scalar_lanes.h"
#include "step/instantiate.h"

namespace flashoptim {

BackendKernels scalar_backend() { return backend_of<ScalarLanes>(); }

}  // namespace flashoptim
