// The sweep over fp32 patterns for one instruction set. The flags of this file are in CMakeLists.txt.
#include "split_sweep.h"
#include "step/lanes/portable.h"

namespace flashoptim::test {

SweepKernel x86_v3_sweep() { return {&sweep<PortableLanes<8>>, 8}; }

}  // namespace flashoptim::test
