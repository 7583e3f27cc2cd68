// What the counted library calls at each of its basic blocks. In a file of its own, which is not counted.
#include "block_counter.h"

namespace {
std::uint64_t blocks = 0;
}

// NOLINTNEXTLINE(bugprone-reserved-identifier): the compiler's name
extern "C" void __sanitizer_cov_trace_pc() { ++blocks; }

namespace flashoptim::checkpoint {
std::uint64_t blocks_executed() { return blocks; }
}  // namespace flashoptim::checkpoint
