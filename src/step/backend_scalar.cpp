// The scalar backend: instantiates every kernel for its lanes. The flags of this file are in src/CMakeLists.txt.
#include "step/instantiate.h"
#include "flashoptim/numeric/scalar_lanes.h"

namespace flashoptim {

BackendKernels scalar_backend() { return backend_of<ScalarLanes>(); }

}  // namespace flashoptim
