// The avx512 backend: instantiates every kernel for its lanes. The flags of this
// file are in src/CMakeLists.txt.
#define FLASHOPTIM_ISA isa_avx512
#include "step/instantiate.h"
#include "step/lanes/avx512.h"

namespace flashoptim {

BackendKernels avx512_backend() { return backend_of<Avx512Lanes>(); }

}  // namespace flashoptim
