// The sweep over fp32 patterns for one instruction set. The flags of this file are in CMakeLists.txt.
#include "split_sweep.h"
#include "step/lanes/portable.h"

namespace flashoptim::test {

SweepKernel scalar_sweep() { return {&sweep<ScalarLanes>, 1}; }
SweepKernel baseline_sweep() { return {&sweep<PortableLanes<4>>, 4}; }

}  // namespace flashoptim::test
