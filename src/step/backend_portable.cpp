// The portable backend: instantiates every kernel for its lanes. The flags of this
// file are in src/CMakeLists.txt.
#define FLASHOPTIM_ISA isa_portable
#include "step/instantiate.h"
#include "step/lanes/portable.h"

namespace flashoptim {

BackendKernels portable_backend() { return backend_of<PortableLanes<4>>(); }

}  // namespace flashoptim
