// The reference kernel: one fused step of a segment (decode, rule, encode), with all special cases. It does
// not know tensors, threads or instruction sets.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "flashoptim/numeric/dither.h"
#include "step/block.h"
#include "step/read_gradient.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

template <class L, class R, class M, class W>
class ReferenceKernel : BlockTypes<R, M, W> {
    using Types = BlockTypes<R, M, W>;
    using typename Types::Block, typename Types::Stored, typename Types::Correction;
    using Types::kMoments, Types::kGrouped, Types::kHasCorrection, Types::kWritesDirections, Types::block_at,
        Types::place_at;
    template <int n>
    using MomentFormat = typename Types::template MomentFormat<n>;
    template <int n>
    using Code = typename Types::template Code<n>;
    template <int n>
    static constexpr bool kIsGrouped = Types::template kIsGrouped<n>;
    using Tail = typename Types::template Tail<kGroup>;
    using Float = typename L::Float;
    using UInt = typename L::UInt;
    using Mask = typename L::Mask;
    static_assert(kGroup % L::kWidth == 0);

public:
    /// Steps the segment; returns the number of elements that were skipped.
    static std::uint64_t run(const Segment& s) {
        std::uint64_t bad = 0;
        const std::int64_t whole = s.count / kGroup * kGroup;
        for (std::int64_t at = 0; at < whole; at += kBlockSize) {
            const auto size = static_cast<int>(whole - at < kBlockSize ? whole - at : kBlockSize);
            bad += step_block(s, block_at(s, at), size, size, place_at(s, at));
        }
        if (whole < s.count) bad += step_tail(s, whole);
        return bad;
    }

    /// Counts the bad gradients of the segment and changes nothing.
    static std::uint64_t count_bad(const Segment& s) {
        std::uint64_t bad = 0;
        alignas(64) float gradient[kGroup];
        for (std::int64_t at = 0; at < s.count; at += kGroup) {
            const auto size = static_cast<int>(s.count - at < kGroup ? s.count - at : kGroup);
            const auto block = block_at(s, at);
            if (size == kGroup) {
                read_gradient<L>(block.gradient, s.gradient_dtype, s.gradient_factor, kGroup, gradient);
                bad += count_bad_in_group(s, block, gradient, kGroup);
            } else {
                Tail tail(s, block, size);
                read_gradient<L>(tail.gradient, s.gradient_dtype, s.gradient_factor, kGroup, gradient);
                bad += count_bad_in_group(s, tail.block(), gradient, size);
            }
        }
        return bad;
    }

    /// Decodes the segment's master weights. `masters` has room for whole groups.
    static void decode_weights(const Segment& s, float* masters) {
        for (std::int64_t at = 0; at < s.count; at += kGroup) {
            const auto block = block_at(s, at);
            if (s.count - at >= kGroup) {
                decode_group(block, masters + at);
            } else {
                Tail tail(s, block, static_cast<int>(s.count - at));
                decode_group(tail.block(), masters + at);
            }
        }
    }

private:
    static FLASHOPTIM_INLINE void decode_group(const Block& b, float* masters) {
        for (int e = 0; e < kGroup; e += L::kWidth) {
            L::store_f32(masters + e,
                         W::template decode<L>(load_weight(b.weight + e), load_correction(b.correction + e)));
        }
    }

    static std::uint64_t step_tail(const Segment& s, std::int64_t at) {
        Tail tail(s, block_at(s, at), static_cast<int>(s.count - at));
        const auto bad = step_block(s, tail.block(), kGroup, static_cast<int>(s.count - at), place_at(s, at));
        tail.write_back();
        return bad;
    }

    static FLASHOPTIM_INLINE UInt load_weight(const Stored* p) {
        if constexpr (std::is_same_v<Stored, float>) {
            return L::bits(L::load_f32(p));
        } else {
            return L::load_u16(p);
        }
    }
    /// The weight that a skipped element keeps. For directions it is NaN, which marks the element.
    static FLASHOPTIM_INLINE UInt kept_weight(const Stored* p) {
        if constexpr (kWritesDirections) return L::broadcast_bits(0x7fc00000U);
        return load_weight(p);
    }
    static FLASHOPTIM_INLINE void store_weight(Stored* p, UInt hi) {
        if constexpr (std::is_same_v<Stored, float>) {
            L::store_f32(p, L::from_bits(hi));
        } else {
            L::store_u16(p, hi);
        }
    }
    static FLASHOPTIM_INLINE UInt load_correction(const Correction* p) {
        if constexpr (!kHasCorrection) {
            return L::broadcast_bits(0U);
        } else if constexpr (sizeof(Correction) == 1) {
            return L::load_i8(p);
        } else {
            return L::load_i16(p);
        }
    }
    static FLASHOPTIM_INLINE void store_correction(Correction* p, UInt lo) {
        if constexpr (!kHasCorrection) {
            return;
        } else if constexpr (sizeof(Correction) == 1) {
            L::store_i8(p, lo);
        } else {
            L::store_i16(p, lo);
        }
    }
    static FLASHOPTIM_INLINE UInt load_code(const float* p) { return L::bits(L::load_f32(p)); }
    static FLASHOPTIM_INLINE UInt load_code(const std::uint16_t* p) { return L::load_u16(p); }
    static FLASHOPTIM_INLINE UInt load_code(const std::int8_t* p) { return L::load_i8(p); }
    static FLASHOPTIM_INLINE UInt load_code(const std::uint8_t* p) { return L::load_u8(p); }
    static FLASHOPTIM_INLINE void store_code(float* p, UInt code) { L::store_f32(p, L::from_bits(code)); }
    static FLASHOPTIM_INLINE void store_code(std::uint16_t* p, UInt code) { L::store_u16(p, code); }
    static FLASHOPTIM_INLINE void store_code(std::int8_t* p, UInt code) { L::store_i8(p, code); }
    static FLASHOPTIM_INLINE void store_code(std::uint8_t* p, UInt code) { L::store_u8(p, code); }
    /// Whether a gradient is bad: NaN, Inf or |g| >= 2^48 (docs/formats.md). A direction is bad only if it is
    /// NaN.
    static FLASHOPTIM_INLINE Mask is_bad(Float g) {
        if constexpr (requires { R::kTakesDirections; }) return is_nan<L>(g);
        return L::negate(L::less(absolute<L>(g), L::broadcast(0x1p48F)));
    }

    static std::uint64_t count_bad_in_group(const Segment& s, const Block& b, const float* gradient,
                                            int size) {
        if (!s.check_gradient) return 0;
        alignas(64) std::uint32_t marks[kGroup];
        for (int e = 0; e < kGroup; e += L::kWidth) {
            const auto w =
                W::template decode<L>(load_weight(b.weight + e), load_correction(b.correction + e));
            const auto g = R::template effective_gradient<L>(L::load_f32(gradient + e), w, *s.scalars);
            L::store_u32(marks + e, L::mask_bits(is_bad(g)));
        }
        return count_marked(marks, size);
    }

    /// The results of the first loop over a block for the second: new moments in carried units, and the
    /// groups' scales.
    struct Pending : GroupScales<L, M> {
        using Scales = GroupScales<L, M>;
        using Scales::old_scale, Scales::new_scale;
        alignas(64) float values[kBlockSize];
        alignas(64) float largest[kGroupsPerBlock] = {};

        [[nodiscard]] bool keeps_codes(int group) const {
            return new_scale[group] == old_scale[group] && new_scale[group] != 0.0F;
        }
    };
    struct Nothing {};
    using Moments = std::conditional_t<kGrouped, Pending, Nothing>[kMoments > 0 ? kMoments : 1];

    /// Steps `size` elements. The first `valid` belong to the tensor. The others are padding: they are
    /// stepped too, but never counted.
    static std::uint64_t step_block(const Segment& s, const Block& b, int size, int valid,
                                    std::uint32_t place) {
        const StepScalars& k = *s.scalars;
        const DitherTables& dither = *s.dither;
        const int groups = size / kGroup;
        alignas(64) float gradient[kBlockSize];
        alignas(64) std::uint32_t bad_elements[kBlockSize];
        alignas(64) float weight[kBlockSize];
        alignas(64) std::uint32_t kept_weights[kBlockSize];
        bool keeps_weights = false;
        std::uint64_t bad_count = 0;
        [[maybe_unused]] Moments moments;

        read_gradient<L>(b.gradient, s.gradient_dtype, s.gradient_factor, size, gradient);
        for_each_moment<R>([&]([[maybe_unused]] auto n) __attribute__((always_inline)) {
            if constexpr (kIsGrouped<n>) moments[n].read_scales(b.scales[n], groups, k.moment[n].factor);
        });

        for (int group = 0; group < groups; ++group) {
            [[maybe_unused]] Float largest[kMaxMoments];
            for (auto& of_moment : largest) of_moment = L::broadcast(0.0F);
            for (int e = group * kGroup; e < (group + 1) * kGroup; e += L::kWidth) {
                const UInt old_hi = load_weight(b.weight + e), old_lo = load_correction(b.correction + e);
                Float w = W::template decode<L>(old_hi, old_lo);
                const Float g = R::template effective_gradient<L>(L::load_f32(gradient + e), w, k);
                OldMoments<L, M, R> old;
                for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
                    auto& moment = old.template at<n>();
                    moment.unit = MomentFormat<n>::template unit<L>(load_code(b.template code<n>() + e));
                    if constexpr (kIsGrouped<n>) {
                        moment.factor = L::broadcast(moments[n].factor[group]);
                    } else {
                        moment.factor = L::broadcast(k.moment[n].factor);
                    }
                });
                NewMoments<L, R> next;
                Types::template update<L>(g, w, old, next, k);
                Float kept[kMaxMoments];
                for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
                    kept[n] = Types::template kept<n, L>(next);
                });

                Mask bad = is_bad(g), keep = bad;
                if constexpr (W::kProtected) {
                    const Mask special = W::template is_special<L>(old_hi);
                    auto new_weight = w;
                    if constexpr (kWritesDirections) new_weight = moved<L>(L::broadcast(0.0F), w, k);
                    bad = L::either(bad, L::both(is_nan<L>(new_weight), L::negate(special)));
                    keep = L::either(bad, special);
                } else if (!s.check_gradient) {
                    bad = keep = L::from_mask_bits(L::broadcast_bits(0U));
                }
                L::store_f32(weight + e, w);
                if (L::any(keep)) [[unlikely]] {
                    if (!keeps_weights) std::memset(kept_weights, 0, sizeof kept_weights);
                    keeps_weights = true;
                    L::store_u32(kept_weights + e, L::mask_bits(keep));
                }
                if (L::any(bad)) [[unlikely]] {
                    if (bad_count == 0) std::memset(bad_elements, 0, sizeof bad_elements);
                    bad_count += static_cast<std::uint64_t>(L::count(bad));
                    L::store_u32(bad_elements + e, L::mask_bits(bad));
                    for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
                        kept[n] = L::select(bad, old_in_carried_units<n>(old, moments, group, k), kept[n]);
                    });
                }
                for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
                    if constexpr (kIsGrouped<n>) {
                        L::store_f32(moments[n].values + e, kept[n]);
                        largest[n] = L::max_ignoring_nan(largest[n], magnitude<n>(kept[n]));
                    } else {
                        // An element that keeps its moment keeps its code too: no rounding changes a number
                        // that the type holds.
                        const auto from = (place + static_cast<std::uint32_t>(e)) % kDitherPeriod;
                        store_code(b.template code<n>() + e,
                                   MomentFormat<n>::template code<L>(
                                       kept[n], kept[n], L::load_u32(dither.moment[n].entry + from)));
                    }
                });
            }
            for_each_moment<R>([&]([[maybe_unused]] auto n) __attribute__((always_inline)) {
                if constexpr (kIsGrouped<n>) moments[n].largest[group] = L::horizontal_max(largest[n]);
            });
        }
        for (int e = 0; e < size; e += L::kWidth) {
            const auto from = (place + static_cast<std::uint32_t>(e)) % kDitherPeriod;
            UInt hi{}, lo{};
            W::template encode<L>(L::load_f32(weight + e), L::load_u32(dither.weight.entry + from), hi, lo);
            if (keeps_weights) [[unlikely]] {
                const auto keep = L::from_mask_bits(L::load_u32(kept_weights + e));
                hi = L::select_bits(keep, kept_weight(b.weight + e), hi);
                lo = L::select_bits(keep, load_correction(b.correction + e), lo);
            }
            store_weight(b.weight + e, hi);
            store_correction(b.correction + e, lo);
        }
        for_each_moment<R>([&]([[maybe_unused]] auto n) __attribute__((always_inline)) {
            if constexpr (kIsGrouped<n>) {
                for (int at = 0; at < groups; at += L::kWidth) new_scales<n>(moments[n], at, k.moment[n]);
                encode_moment<n>(b, moments[n], dither.moment[n].entry, place, groups, bad_count != 0,
                                 bad_elements);
                moments[n].write_scales(b.scales[n], groups);
            }
        });
        return valid == size || bad_count == 0 ? bad_count : count_marked(bad_elements, valid);
    }

    static std::uint64_t count_marked(const std::uint32_t* marks, int size) {
        std::uint64_t count = 0;
        for (int e = 0; e < size; ++e) count += marks[e] != 0 ? 1 : 0;
        return count;
    }

    template <int n>
    static FLASHOPTIM_INLINE Float magnitude(Float x) {
        if constexpr (Types::template kIsSquared<n>) {
            return x;
        } else {
            return absolute<L>(x);
        }
    }

    /// The old moment in the units of a new one. A bad element keeps it.
    template <int n>
    static FLASHOPTIM_INLINE Float old_in_carried_units(const OldMoments<L, M, R>& old,
                                                        [[maybe_unused]] const Moments& moments,
                                                        [[maybe_unused]] int group, const StepScalars& k) {
        const Float unit = old.template at<n>().unit;
        if constexpr (kIsGrouped<n>) {
            return L::divide(unit * (moments[n].old_scale[group] * MomentFormat<n>::kUnit),
                             L::broadcast(k.moment[n].measure));
        } else {
            return unit;
        }
    }

    template <int n>
    static FLASHOPTIM_INLINE void new_scales(Pending& moment, int group, const MomentScalars& k) {
        Float scale, encode;
        const auto largest = L::load_f32(moment.largest + group),
                   old_scale = L::load_f32(moment.old_scale + group);
        MomentFormat<n>::template new_scale<L>(largest, old_scale, k, scale, encode);
        L::store_f32(moment.new_scale + group, scale);
        L::store_f32(moment.encode + group, encode);
    }

    template <int n>
    static FLASHOPTIM_INLINE void encode_moment(const Block& b, const Pending& moment,
                                                const std::uint32_t* dither, std::uint32_t place, int groups,
                                                bool has_bad, const std::uint32_t* bad_elements) {
        for (int group = 0; group < groups; ++group) {
            const auto factor = L::broadcast(moment.encode[group]);
            for (int e = group * kGroup; e < (group + 1) * kGroup; e += L::kWidth) {
                const auto u = L::load_u32(dither + (place + static_cast<std::uint32_t>(e)) % kDitherPeriod);
                auto code = MomentFormat<n>::template code<L>(L::load_f32(moment.values + e), factor, u);
                auto* const to = b.template code<n>() + e;
                if (has_bad && moment.keeps_codes(group)) [[unlikely]] {
                    const auto bad = L::from_mask_bits(L::load_u32(bad_elements + e));
                    code = L::select_bits(bad, load_code(to), code);
                }
                store_code(to, code);
            }
        }
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
