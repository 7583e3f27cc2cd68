// The sweep over fp32 patterns for one instruction set. The flags of this file are in CMakeLists.txt.
#define FLASHOPTIM_ISA isa_avx512
#include "split_sweep.h"
#include "step/lanes/avx512.h"

namespace flashoptim::test {

SweepKernel avx512_sweep() { return {&sweep<Avx512Lanes>, 16}; }

}  // namespace flashoptim::test
