// The number formats alone: moments to codes and back, weights to a split and back. Nothing here steps.
#pragma once

#include "flashoptim/cxx20.h"
#if defined(FLASHOPTIM_CXX20)

#include <cstdint>
#include <span>

#include "flashoptim/step.h"

namespace flashoptim {

enum class Moment : std::uint8_t { kFirst, kSecond };

/// Encodes fp32 moments to nearest (u = 1/2) into buffers as `plan_storage` sized them. `values` are m, or v (not its root).
/// @param storage kNative or kPaper (kFloat32 copies)
/// @throws InvalidArgument for a NaN or infinite value, a negative v, a value too large for the format, buffers of another size, or
/// buffers that overlap.
void quantize_moment(Moment moment, MomentStorage storage, const Layout& layout,
                     std::span<const float> values, std::span<std::byte> codes,
                     std::span<std::uint16_t> scales);

/// The reverse.
/// @throws InvalidArgument for buffers of another size, or that overlap.
void dequantize_moment(Moment moment, MomentStorage storage, const Layout& layout,
                       std::span<const std::byte> codes, std::span<const std::uint16_t> scales,
                       std::span<float> values);

/// Whether codes and scales are ones that a step of this plan writes. In `native`: no code -128 (m) or 255 (v), scales 0 or
/// at least 2^-100 (m), 2^-60 (v) and finite, codes 0 where the scale is 0, fp32 moments finite. In `paper`: scales not negative and
/// not NaN; they may be infinite (a group maximum of 65520 or more), and fp32 moments NaN or infinite, as bad gradients make them
/// where the check is off. No v is negative. Empty buffers, of a moment that the rule does not have, pass.
/// @throws FormatError that names `name` otherwise; InvalidArgument for buffers of another size than `layout` has.
void check_moment(Moment moment, const StoragePlan& plan, const Layout& layout,
                  std::span<const std::byte> codes, std::span<const std::uint16_t> scales,
                  std::string_view name);

/// Splits fp32 weights into a stored weight and a correction, to nearest (off = 0x80). Inf and NaN become Inf and NaN with
/// correction 0. `plan` says dtype, bits and whether the split is the paper's; sizes are in elements of numel.
/// @throws InvalidArgument for 16-bit weights where buffers overlap; so does join_weights.
void split_weights(const StoragePlan& plan, std::span<const float> masters, void* weights, void* corrections);

/// The reverse: full-precision weights.
void join_weights(const StoragePlan& plan, const void* weights, const void* corrections,
                  std::span<float> masters);

/// The corrections that bring stored weights nearest to `masters`, for weights that somebody else rounded; clamped to what a
/// correction holds. In the native split 0 where either is NaN or the stored weight is infinite.
void correct_weights(const StoragePlan& plan, std::span<const float> masters, const void* weights,
                     void* corrections);

}  // namespace flashoptim

#endif
