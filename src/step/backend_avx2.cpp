// The avx2 backend: instantiates every kernel for its lanes. The flags of this
// file are in src/CMakeLists.txt.
#define FLASHOPTIM_ISA isa_avx2
#include "step/instantiate.h"
#include "step/lanes/avx2.h"

namespace flashoptim {

BackendKernels avx2_backend() { return backend_of<Avx2Lanes>(); }

}  // namespace flashoptim
