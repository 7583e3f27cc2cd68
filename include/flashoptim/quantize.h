// The number formats without an optimizer: encodes and decodes moments, splits and joins weights.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <span>

#include "flashoptim/step.h"

namespace flashoptim {

/// Encodes fp32 moments, rounding to nearest (u = 1/2 in docs/formats.md).
/// @param kind    what the moment is
/// @param storage kNative or kPaper; kFloat32 copies
/// @param layout  how the elements are counted
/// @param values  m, or v (not its root), in memory order
/// @param codes   as plan_moment() sizes them
/// @param scales  one 16-bit scale per group, as plan_moment() sizes them
/// @param weight_dtype dtype of the weight; only the last gradient depends on it. A float16 gradient beyond
///         the range of the type becomes its largest number.
/// @throws InvalidArgument for a value that is NaN, infinite or too large for the format, a negative v,
///         buffers of another size, or buffers that overlap.
void quantize_moment(MomentKind kind, MomentStorage storage, const Layout& layout,
                     std::span<const float> values, std::span<std::byte> codes,
                     std::span<std::uint16_t> scales, DType weight_dtype = DType::kFloat32);

/// Decodes moments: the reverse of quantize_moment().
/// @throws InvalidArgument for buffers of another size, or buffers that overlap.
void dequantize_moment(MomentKind kind, MomentStorage storage, const Layout& layout,
                       std::span<const std::byte> codes, std::span<const std::uint16_t> scales,
                       std::span<float> values, DType weight_dtype = DType::kFloat32);

/// Checks that a step of this plan can have written these codes and scales.
///
/// Native: no code is -128 (m) or 255 (v); a scale is 0, or finite and at least 2^-100 (m) or 2^-60 (v);
/// codes are 0 where the scale is 0; moments without scales are finite, and a kept gradient is at most 2^48.
/// Paper: scales are neither negative nor NaN. They may be infinite (a group maximum of 65520 or more), and
/// fp32 moments may be NaN or infinite, because bad gradients make them so when the check is off. No v is
/// negative. The empty buffers of a moment that the rule does not have pass.
/// @throws FormatError names `name` if the check fails.
/// @throws InvalidArgument for buffers of another size than `layout` has.
void check_moment(MomentKind kind, const StoragePlan& plan, const Layout& layout,
                  std::span<const std::byte> codes, std::span<const std::uint16_t> scales,
                  std::string_view name);

/// Splits master weights into stored weights and corrections, rounding to nearest (off = 0x80 in
/// docs/formats.md). Inf and NaN become Inf and NaN with a correction of 0.
/// @param plan        says the weight's dtype, the bits of the master weight and whether the split is the
///         paper's
/// @param masters     fp32 weights
/// @param weights     as many elements as `masters`, of the plan's weight dtype
/// @param corrections as many int8 (24 bits) or int16 (32 bits); may be null where the plan has none
/// @throws InvalidArgument if the weights have 16 bits and buffers overlap.
void split_weights(const StoragePlan& plan, std::span<const float> masters, void* weights, void* corrections);

/// Joins stored weights and corrections to master weights: the reverse of split_weights().
/// @throws InvalidArgument as split_weights().
void join_weights(const StoragePlan& plan, const void* weights, const void* corrections,
                  std::span<float> masters);

/// Computes the corrections that bring given stored weights nearest to `masters`, for weights that other code
/// rounded. A correction is clamped to its integer range. In the native split it is 0 if the weight or the
/// master is NaN, or if the weight is infinite.
void correct_weights(const StoragePlan& plan, std::span<const float> masters, const void* weights,
                     void* corrections);

}  // namespace flashoptim

#endif
