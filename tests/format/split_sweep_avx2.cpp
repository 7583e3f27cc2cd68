// The sweep over fp32 patterns for one instruction set. The flags of this file are in CMakeLists.txt.
#define FLASHOPTIM_ISA isa_avx2
#include "split_sweep.h"
#include "step/lanes/avx2.h"

namespace flashoptim::test {

SweepKernel avx2_sweep() { return {&sweep<Avx2Lanes>, 8}; }

}  // namespace flashoptim::test
