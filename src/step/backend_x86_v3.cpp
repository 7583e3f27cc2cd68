// The x86_v3 backend: instantiates every kernel for its lanes. The flags of this file are in src/CMakeLists.txt.
#include "step/instantiate.h"
#include "step/lanes/portable.h"

namespace flashoptim {

BackendKernels x86_v3_backend() { return backend_of<PortableLanes<8>>(); }

}  // namespace flashoptim
