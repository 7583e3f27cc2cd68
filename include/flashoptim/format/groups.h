// The size of a group of moments, and the sizes below which moments stay in fp32. The layout of a tensor is
// in layout.h.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>

namespace flashoptim {

/// Elements that share one scale. Each row of a tensor begins with a new group, so a cut between rows splits
/// no group.
constexpr std::int64_t kGroupSize = 32;
/// Rows shorter than this keep fp32 moments in the native format, because a scale for fewer elements would
/// save nothing.
constexpr std::int64_t kMinQuantizedRow = 8;
/// Tensors with fewer elements keep fp32 moments in the native format. They need little memory and are the
/// sensitive ones.
constexpr std::int64_t kDefaultMinQuantizedNumel = 4096;
/// The same for tensors of one dimension (norm weights and biases).
constexpr std::int64_t kDefaultMinQuantizedNumel1d = 65537;

}  // namespace flashoptim

#endif
