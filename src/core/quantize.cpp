// Encodes and decodes outside a step. It always uses the scalar lanes and rounds to nearest.
#include "flashoptim/quantize.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>

#include "exact_arithmetic.h"
#include "flashoptim/error.h"
#include "flashoptim/format/dither_tables.h"
#include "flashoptim/format/native_states.h"
#include "flashoptim/format/paper.h"
#include "flashoptim/format/weights.h"
#include "step/float_environment.h"

namespace flashoptim {

namespace {

using L = ScalarLanes;

/// The scale of a larger moment would overflow, because kHeadroom is added to it.
constexpr float kLargestNativeMoment = 0x1p126F;
/// The largest finite binary16, since scales are binary16.
constexpr float kLargestPaperMoment = 65504.0F;
/// A gradient beyond it is bad and is never kept. A smaller one may have been rounded up to it.
constexpr float kLargestGradient = 0x1p48F;

/// Calls visit(group, begin, count) for every group, in the order in which scales are stored.
template <class Visit>
void for_each_group(MomentStorage storage, const Layout& layout, Visit visit) {
    if (layout.numel == 0) return;
    const auto row_length = storage == MomentStorage::kPaper ? layout.numel : layout.row_length;
    std::size_t group = 0;
    for (std::int64_t row = 0; row < layout.numel; row += row_length) {
        for (std::int64_t at = 0; at < row_length; at += kGroupSize, ++group) {
            const auto count = row_length - at < kGroupSize ? row_length - at : kGroupSize;
            visit(group, static_cast<std::size_t>(row + at), static_cast<std::size_t>(count));
        }
    }
}

std::size_t group_count(MomentStorage storage, const Layout& layout) {
    if (layout.numel <= 0 || layout.row_length <= 0) return 0;
    const auto row_length = storage == MomentStorage::kPaper ? layout.numel : layout.row_length;
    const auto in_row = (row_length + kGroupSize - 1) / kGroupSize;
    return static_cast<std::size_t>(layout.numel / row_length * in_row);
}

/// The dtype of a moment that is stored without scales; nothing for a moment with scales.
std::optional<DType> plain_dtype(MomentKind kind, MomentStorage storage, DType weight_dtype) {
    const auto dtype = plan_moment(kind, storage, {}, weight_dtype).codes.dtype;
    return is_floating(dtype) ? std::optional(dtype) : std::nullopt;
}

void check_sizes(std::optional<DType> plain, MomentStorage storage, const Layout& layout, std::size_t values,
                 std::size_t code_bytes, std::size_t scales) {
    const auto numel = static_cast<std::size_t>(layout.numel);
    const auto expected_bytes = numel * (plain ? size_of(*plain) : 1);
    const auto expected_scales = plain ? 0 : group_count(storage, layout);
    if (values != numel || code_bytes != expected_bytes || scales != expected_scales) {
        throw InvalidArgument("a moment of " + std::to_string(numel) + " elements needs " +
                              std::to_string(numel) + " values, " + std::to_string(expected_bytes) +
                              " bytes of codes and " + std::to_string(expected_scales) + " scales, not " +
                              std::to_string(values) + ", " + std::to_string(code_bytes) + " and " +
                              std::to_string(scales));
    }
}

/// Refuses buffers that overlap, because outputs are written before all inputs have been read. fp32 copies
/// need no such check.
void check_apart(std::span<const std::byte> read, std::span<const std::byte> written, const char* names) {
    const std::less<const std::byte*> before;
    if (read.empty() || written.empty() || !before(read.data(), written.data() + written.size()) ||
        !before(written.data(), read.data() + read.size())) {
        return;
    }
    throw InvalidArgument(std::string(names) + " lie in the same memory: give each memory of its own");
}
std::span<const std::byte> bytes_of(const void* data, std::size_t count, DType dtype) {
    if (data == nullptr) return {};
    return {static_cast<const std::byte*>(data), count * size_of(dtype)};
}
/// Refuses masters that overlap the stored weights or the corrections.
void check_apart(const StoragePlan& plan, std::span<const float> masters, const void* weights,
                 const void* corrections) {
    if (plan.weight_dtype == DType::kFloat32) return;
    const auto stored = bytes_of(weights, masters.size(), plan.weight_dtype);
    check_apart(std::as_bytes(masters), stored, "masters and weights");
    if (plan.correction().count == 0) return;
    const auto correction = bytes_of(corrections, masters.size(), plan.correction().dtype);
    check_apart(std::as_bytes(masters), correction, "masters and corrections");
    check_apart(stored, correction, "weights and corrections");
}

void check_values(MomentKind kind, MomentStorage storage, std::span<const float> values) {
    const float largest = storage == MomentStorage::kPaper ? kLargestPaperMoment
                          : kind == MomentKind::kGradient  ? kLargestGradient
                                                           : kLargestNativeMoment;
    const bool is_squared = kind == MomentKind::kSquared;
    for (std::size_t n = 0; n < values.size(); ++n) {
        const float x = values[n];
        const float size = is_squared ? std::sqrt(x) : std::fabs(x);
        if (!(size <= largest)) {
            throw InvalidArgument("value " + std::to_string(n) + " of the moment is " + std::to_string(x) +
                                  ": it must be finite" + (is_squared ? ", not negative" : "") +
                                  " and within the range of the format");
        }
    }
}

/// Calls visit.template operator()<M, kKind>() with the moment format of a storage that has groups.
template <class Visit>
void with_moment_format(MomentKind kind, MomentStorage storage, Visit visit) {
    const auto with_kind = [&]<class M>() {
        kind == MomentKind::kSquared ? visit.template operator()<M, MomentKind::kSquared>()
                                     : visit.template operator()<M, MomentKind::kSigned>();
    };
    storage == MomentStorage::kNative ? with_kind.template operator()<NativeMoments>()
                                      : with_kind.template operator()<PaperMoments>();
}

template <class M, MomentKind kKind>
void encode_groups(MomentStorage storage, const Layout& layout, std::span<const float> values,
                   std::span<std::byte> codes, std::span<std::uint16_t> scales) {
    using Moment = typename M::template Of<kKind>;
    const auto k = Moment::scalars(1.0, 1.0, 1.0);
    for_each_group(storage, layout, [&](std::size_t group, std::size_t begin, std::size_t count) {
        float carried[kGroupSize], largest = 0.0F;
        for (std::size_t n = 0; n < count; ++n) {
            carried[n] = kKind == MomentKind::kSquared ? L::sqrt(values[begin + n]) : values[begin + n];
            largest = L::max_ignoring_nan(largest, std::fabs(carried[n]));
        }
        float scale = 0.0F, encode = 0.0F;
        Moment::template new_scale<L>(largest, 0.0F, k, scale, encode);
        for (std::size_t n = 0; n < count; ++n) {
            const auto code =
                Moment::template code<L>(carried[n], encode, dither_of_code(kKind, kNearestDither));
            codes[begin + n] = static_cast<std::byte>(code & 0xffU);
        }
        scales[group] = static_cast<std::uint16_t>(M::scale_bits(scale));
    });
}

template <class M, MomentKind kKind>
void decode_groups(MomentStorage storage, const Layout& layout, std::span<const std::byte> codes,
                   std::span<const std::uint16_t> scales, std::span<float> values) {
    using Moment = typename M::template Of<kKind>;
    for_each_group(storage, layout, [&](std::size_t group, std::size_t begin, std::size_t count) {
        const float scale = M::scale_to_float(scales[group]);
        for (std::size_t n = begin; n < begin + count; ++n) {
            const auto code = static_cast<typename Moment::Code>(codes[n]);
            const auto bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(code));
            const auto value = Moment::template unit<L>(bits) * (scale * Moment::kUnit);
            values[n] = kKind == MomentKind::kSquared ? value * value : value;
        }
    });
}

/// Calls visit.template operator()<Moment>() with the format of a moment that is stored without scales.
template <class Visit>
void with_plain_format(MomentKind kind, DType dtype, Visit visit) {
    if (dtype == DType::kFloat32) {
        visit.template operator()<Float32Moment>();
    } else if (dtype == DType::kFloat16) {
        visit.template operator()<HalfMoment<NearestFloat16>>();
    } else if (kind == MomentKind::kSlow) {
        visit.template operator()<NativeMoments::Slow>();
    } else {
        visit.template operator()<HalfMoment<NearestBfloat16>>();
    }
}
template <class Moment>
void encode_plain(std::span<const float> values, std::span<std::byte> codes) {
    using Code = typename Moment::Code;
    for (std::size_t n = 0; n < values.size(); ++n) {
        const auto bits = Moment::template code<L>(values[n], 0.0F, kNearestDither >> 16U);
        if constexpr (std::is_same_v<Code, float>) {
            std::memcpy(codes.data() + n * sizeof(Code), &values[n], sizeof(Code));
        } else {
            const auto code = static_cast<Code>(bits);
            std::memcpy(codes.data() + n * sizeof(Code), &code, sizeof(Code));
        }
    }
}
template <class Moment>
float plain_value(std::span<const std::byte> codes, std::size_t n) {
    using Code = typename Moment::Code;
    const auto code = L::load_as<Code>(codes.data() + n * sizeof(Code));
    if constexpr (std::is_same_v<Code, float>) {
        return code;
    } else {
        return Moment::template unit<L>(code);
    }
}

/// Calls visit.template operator()<W>() with the weight format of the plan.
template <class Visit>
void with_weight_format(const StoragePlan& plan, Visit visit) {
    const bool is_bfloat16 = plan.weight_dtype == DType::kBFloat16;
    const auto choose = [&]<class ForBfloat16, class ForFloat16>() {
        is_bfloat16 ? visit.template operator()<ForBfloat16>() : visit.template operator()<ForFloat16>();
    };
    if (plan.weight_dtype == DType::kFloat32) {
        visit.template operator()<PaperFloat32Weight>();
    } else if (plan.paper_arithmetic && plan.master_weight_bits == 24) {
        choose.template
        operator()<PaperWeight<PaperBfloat16, std::int8_t>, PaperWeight<PaperFloat16, std::int8_t>>();
    } else if (plan.paper_arithmetic && plan.master_weight_bits == 32) {
        choose.template
        operator()<PaperWeight<PaperBfloat16, std::int16_t>, PaperWeight<PaperFloat16, std::int16_t>>();
    } else if (plan.paper_arithmetic) {
        choose.template operator()<PaperPlainWeight<PaperBfloat16>, PaperPlainWeight<PaperFloat16>>();
    } else if (plan.master_weight_bits == 24) {
        choose.template operator()<Bfloat16Weight24, Float16Weight24>();
    } else if (plan.master_weight_bits == 32) {
        choose.template operator()<Bfloat16Weight32, Float16Weight32>();
    } else if (plan.master_weight_bits == 16) {
        choose.template operator()<Bfloat16WeightDithered, Float16WeightDithered>();
    } else {
        choose.template operator()<Bfloat16WeightNearest, Float16WeightNearest>();
    }
}

/// The 16 bits of a native weight that is Inf or NaN. Only conversions write these; a step does not.
template <class W>
std::uint32_t special_bits(float w, bool is_bfloat16) {
    const std::uint32_t infinity = is_bfloat16 ? Bfloat16Grid::kInfinityHigh : Float16Grid::kInfinityHigh;
    const std::uint32_t nan = is_bfloat16 ? Bfloat16Grid::kNanHigh : Float16Grid::kNanHigh;
    return (std::isnan(w) ? nan : infinity) | ((L::bits(w) >> 16U) & 0x8000U);
}

template <class W>
void split_all(bool is_bfloat16, std::span<const float> masters, void* weights, void* corrections) {
    using Correction = typename W::Correction;
    for (std::size_t n = 0; n < masters.size(); ++n) {
        std::uint32_t hi = 0, lo = 0;
        if constexpr (std::is_same_v<typename W::Stored, float>) {
            static_cast<float*>(weights)[n] = masters[n];
        } else {
            if (W::kProtected && !std::isfinite(masters[n])) {
                hi = special_bits<W>(masters[n], is_bfloat16);
            } else {
                W::template encode<L>(masters[n], kNearestDither, hi, lo);
            }
            static_cast<std::uint16_t*>(weights)[n] = static_cast<std::uint16_t>(hi);
            if constexpr (!std::is_void_v<Correction>)
                static_cast<Correction*>(corrections)[n] = static_cast<Correction>(lo);
        }
    }
}

/// The native correction: the master's grid magnitude less that of the stored weight. A master whose sign is
/// not the stored sign counts as negative.
template <class Grid, int kBits, class Correction>
std::int32_t correction_of(SplitWeight<Grid, kBits, Correction> /*format*/, float master, std::uint32_t hi) {
    using W = SplitWeight<Grid, kBits, Correction>;
    if (std::isnan(master) || W::template is_special<L>(hi)) return 0;
    std::uint32_t high = 0, low = 0;
    W::template encode<L>(master, kNearestDither, high, low);
    const auto magnitude =
        static_cast<std::int32_t>(((high & 0x7fffU) << static_cast<unsigned>(kBits)) + low);
    const bool same_sign = std::signbit(master) == ((hi & 0x8000U) != 0);
    const auto stored = static_cast<std::int32_t>((hi & 0x7fffU) << static_cast<unsigned>(kBits));
    return std::clamp((same_sign ? magnitude : -magnitude) - stored, -static_cast<std::int32_t>(W::kHalf),
                      static_cast<std::int32_t>(W::kHalf) - 1);
}
template <class Type, class Correction>
std::int32_t correction_of(PaperWeight<Type, Correction> /*format*/, float master, std::uint32_t hi) {
    return static_cast<std::int32_t>(PaperWeight<Type, Correction>::template correction<L>(master, hi));
}

template <class W>
void correct_all(std::span<const float> masters, const void* weights, void* corrections) {
    using Correction = typename W::Correction;
    if constexpr (!std::is_void_v<Correction>) {
        for (std::size_t n = 0; n < masters.size(); ++n) {
            static_cast<Correction*>(corrections)[n] = static_cast<Correction>(
                correction_of(W{}, masters[n], static_cast<const std::uint16_t*>(weights)[n]));
        }
    }
}

template <class W>
void join_all(const void* weights, const void* corrections, std::span<float> masters) {
    using Correction = typename W::Correction;
    for (std::size_t n = 0; n < masters.size(); ++n) {
        if constexpr (std::is_same_v<typename W::Stored, float>) {
            masters[n] = static_cast<const float*>(weights)[n];
        } else {
            std::uint32_t lo = 0;
            if constexpr (!std::is_void_v<Correction>) {
                lo = static_cast<std::uint32_t>(
                    static_cast<std::int32_t>(static_cast<const Correction*>(corrections)[n]));
            }
            masters[n] = W::template decode<L>(static_cast<const std::uint16_t*>(weights)[n], lo);
        }
    }
}

}  // namespace

void quantize_moment(MomentKind kind, MomentStorage storage, const Layout& layout,
                     std::span<const float> values, std::span<std::byte> codes,
                     std::span<std::uint16_t> scales, DType weight_dtype) {
    const DefaultFloatEnvironment exact;
    const auto plain = plain_dtype(kind, storage, weight_dtype);
    check_sizes(plain, storage, layout, values.size(), codes.size(), scales.size());
    if (storage == MomentStorage::kFloat32) {
        if (!values.empty()) std::memcpy(codes.data(), values.data(), values.size_bytes());
        return;
    }
    check_apart(std::as_bytes(values), codes, "values and codes");
    check_apart(std::as_bytes(values), std::as_bytes(scales), "values and scales");
    check_apart(codes, std::as_bytes(scales), "codes and scales");
    check_values(kind, storage, values);
    if (plain) {
        return with_plain_format(kind, *plain, [&]<class Moment>() { encode_plain<Moment>(values, codes); });
    }
    with_moment_format(kind, storage, [&]<class M, MomentKind kKind>() {
        encode_groups<M, kKind>(storage, layout, values, codes, scales);
    });
}

void dequantize_moment(MomentKind kind, MomentStorage storage, const Layout& layout,
                       std::span<const std::byte> codes, std::span<const std::uint16_t> scales,
                       std::span<float> values, DType weight_dtype) {
    const DefaultFloatEnvironment exact;
    const auto plain = plain_dtype(kind, storage, weight_dtype);
    check_sizes(plain, storage, layout, values.size(), codes.size(), scales.size());
    if (storage == MomentStorage::kFloat32) {
        if (!values.empty()) std::memcpy(values.data(), codes.data(), codes.size());
        return;
    }
    check_apart(codes, std::as_bytes(values), "codes and values");
    check_apart(std::as_bytes(scales), std::as_bytes(values), "scales and values");
    if (plain) {
        return with_plain_format(kind, *plain, [&]<class Moment>() {
            for (std::size_t n = 0; n < values.size(); ++n) values[n] = plain_value<Moment>(codes, n);
        });
    }
    with_moment_format(kind, storage, [&]<class M, MomentKind kKind>() {
        decode_groups<M, kKind>(storage, layout, codes, scales, values);
    });
}

void check_moment(MomentKind kind, const StoragePlan& plan, const Layout& layout,
                  std::span<const std::byte> codes, std::span<const std::uint16_t> scales,
                  std::string_view name) {
    const bool is_squared = kind == MomentKind::kSquared;
    if (codes.empty() && scales.empty()) return;
    const auto numel = static_cast<std::size_t>(layout.numel);
    const auto plain = plain_dtype(kind, plan.moments, plan.weight_dtype);
    check_sizes(plain, plan.moments, layout, numel, codes.size(), scales.size());
    if (plain) {
        return with_plain_format(kind, *plain, [&]<class Moment>() {
            for (std::size_t n = 0; n < numel; ++n) {
                const float value = plain_value<Moment>(codes, n);
                if (kind == MomentKind::kGradient && std::fabs(value) > kLargestGradient) {
                    throw FormatError(std::string(name) + ": element " + std::to_string(n) + " is " +
                                      std::to_string(value) +
                                      "; a gradient of 2^48 or more is never kept: the file is damaged");
                }
                if ((plan.paper_arithmetic || std::isfinite(value)) && (!is_squared || !(value < 0.0F))) {
                    continue;
                }
                throw FormatError(std::string(name) + ": element " + std::to_string(n) + " is " +
                                  std::to_string(value) + "; a moment is " +
                                  (plan.paper_arithmetic ? "not negative"
                                   : is_squared          ? "finite and not negative"
                                                         : "finite") +
                                  ": the file is damaged");
            }
        });
    }
    const bool is_native = plan.moments == MomentStorage::kNative;
    if (is_native) {
        const auto forbidden = is_squared ? std::byte{0xff} : std::byte{0x80};
        for (std::size_t n = 0; n < codes.size(); ++n) {
            if (codes[n] != forbidden) continue;
            throw FormatError(
                std::string(name) + ": element " + std::to_string(n) + " has code " +
                (is_squared ? "255" : "-128") +
                ", which the native format never writes: the file is damaged or of another format");
        }
    }
    const float smallest = is_squared ? NativeMoments::Squared::kTiny : NativeMoments::Signed::kTiny;
    for (std::size_t n = 0; n < scales.size(); ++n) {
        const float scale =
            is_native ? NativeMoments::scale_to_float(scales[n]) : PaperMoments::scale_to_float(scales[n]);
        const bool is_written = !is_native || (std::isfinite(scale) && (scale == 0.0F || scale >= smallest));
        if (!std::isnan(scale) && !std::signbit(scale) && is_written) continue;
        std::array<char, 32> text{};
        std::to_chars(text.data(), text.data() + text.size(), scale);
        throw FormatError(
            std::string(name) + ": scale " + std::to_string(n) + " is " + text.data() +
            "; scales are not negative, not NaN and in the native format finite and 0 or at least " +
            (is_squared ? "2^-60" : "2^-100") + ": the file is damaged or of another format");
    }
    if (!is_native) return;
    for_each_group(plan.moments, layout, [&](std::size_t group, std::size_t begin, std::size_t count) {
        const auto of_group = codes.subspan(begin, count);
        if (NativeMoments::scale_to_float(scales[group]) != 0.0F) return;
        if (std::all_of(of_group.begin(), of_group.end(),
                        [](std::byte code) { return code == std::byte{0}; })) {
            return;
        }
        throw FormatError(
            std::string(name) + ": scale " + std::to_string(group) +
            " is 0, and the codes of its group are not, which the native format never writes: the "
            "file is damaged or of another format");
    });
}

void split_weights(const StoragePlan& plan, std::span<const float> masters, void* weights,
                   void* corrections) {
    const DefaultFloatEnvironment exact;
    const bool is_bfloat16 = plan.weight_dtype == DType::kBFloat16;
    check_apart(plan, masters, weights, corrections);
    with_weight_format(plan, [&]<class W>() { split_all<W>(is_bfloat16, masters, weights, corrections); });
}

void correct_weights(const StoragePlan& plan, std::span<const float> masters, const void* weights,
                     void* corrections) {
    const DefaultFloatEnvironment exact;
    with_weight_format(plan, [&]<class W>() { correct_all<W>(masters, weights, corrections); });
}

void join_weights(const StoragePlan& plan, const void* weights, const void* corrections,
                  std::span<float> masters) {
    const DefaultFloatEnvironment exact;
    check_apart(plan, masters, weights, corrections);
    with_weight_format(plan, [&]<class W>() { join_all<W>(weights, corrections, masters); });
}

}  // namespace flashoptim
