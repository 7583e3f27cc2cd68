// How much work the counted library has done: the same number in every run, on every machine.
#pragma once

#include <cstdint>

extern "C" void __sanitizer_cov_trace_pc();

namespace flashoptim::checkpoint {

/// Basic blocks that were executed since the process began.
std::uint64_t blocks_executed();

}  // namespace flashoptim::checkpoint
