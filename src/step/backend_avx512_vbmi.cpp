// The avx512_vbmi backend: instantiates every kernel for its lanes. The flags of this
// file are in src/CMakeLists.txt.
#define FLASHOPTIM_ISA isa_avx512_vbmi
#include "step/instantiate.h"
#include "step/lanes/avx512_vbmi.h"

namespace flashoptim {

BackendKernels avx512_vbmi_backend() { return backend_of<Avx512VbmiLanes>(); }

}  // namespace flashoptim
