// The fast kernel: the fused step for ordinary blocks. A block is ordinary if no gradient is bad and no
// weight is Inf, NaN, huge or has a negative magnitude, so that no element needs a special case. The kernel
// computes a block in registers and buffers, checks the whole block, and only then writes it. If the block is
// not ordinary, nothing is written and the reference kernel steps it. The bits are those of
// reference_kernel.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "flashoptim/numeric/dither.h"
#include "step/block.h"
#include "step/read_gradient.h"
#include "step/watch.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

template <class L, class R, class M, class W>
class FastKernel : BlockTypes<R, M, W> {
    using Types = BlockTypes<R, M, W>;
    using typename Types::Block, typename Types::Stored, typename Types::Correction;
    using Types::kMoments, Types::kBuffers, Types::kGrouped, Types::kHasCorrection, Types::kRootShowsGradient,
        Types::block_at, Types::place_at;
    template <int n>
    using MomentFormat = typename Types::template MomentFormat<n>;
    template <int n>
    using Code = typename Types::template Code<n>;
    template <int n>
    static constexpr bool kIsGrouped = Types::template kIsGrouped<n>;
    using Float = typename L::Float;
    using UInt = typename L::UInt;
    using Unit = Float[L::kUnit];
    using Watch = flashoptim::Watch<L, R, W>;
    static constexpr int kUnitSize = L::kUnit * L::kWidth;
    static constexpr int kTail = kUnitSize < kGroup ? kGroup : kUnitSize;
    static constexpr int kVectorsInGroup = kGroup / L::kWidth;
    using Tail = typename Types::template Tail<kTail>;
    /// Distance of the software prefetch in elements. The hardware prefetcher cannot follow so many streams.
    static constexpr int kPrefetch = 1024;

public:
    /// Steps the segment; returns the number of elements that were skipped.
    static std::uint64_t run(const Segment& s) {
        std::uint64_t bad = 0;
        const std::int64_t whole = s.count / kTail * kTail;
        for (std::int64_t at = 0; at < whole; at += kBlockSize) {
            const auto size = static_cast<int>(whole - at < kBlockSize ? whole - at : kBlockSize);
            if constexpr (kGrouped) {
                if (!step_groups(s, block_at(s, at), size, place_at(s, at), Ahead(s, at))) {
                    bad += refer(s, at, size);
                }
            } else {
                bad += step_units(s, at, size);
            }
        }
        if (whole < s.count) {
            const auto size = static_cast<int>(s.count - whole);
            Tail tail(s, block_at(s, whole), size);
            if (step_tail(s, tail.block(), size, place_at(s, whole), Ahead(s, whole))) {
                tail.write_back();
            } else {
                bad += refer(s, whole, size);
            }
        }
        return bad;
    }

private:
    /// Steps a part of the segment with the reference kernel.
    static std::uint64_t refer(const Segment& s, std::int64_t at, int size) {
        const Block b = block_at(s, at);
        Segment part = s;
        part.weight = b.weight;
        part.correction = b.correction;
        for (int n = 0; n < kMoments; ++n) {
            part.codes[n] = b.codes[n];
            part.scales[n] = b.scales[n];
        }
        part.gradient = b.gradient;
        part.place = place_at(s, at);
        part.count = size;
        return s.reference(part);
    }

    /// The elements kPrefetch after a block, in its segment or in the following one. They are prefetched.
    class Ahead {
    public:
        FLASHOPTIM_INLINE Ahead(const Segment& s, std::int64_t at) : gradient_dtype_(s.gradient_dtype) {
            const Segment* from = &s;
            auto place = at + kPrefetch;
            if (place >= s.count) {
                from = s.following;
                place = (place - s.count) / kGroup * kGroup;
            }
            is_there_ = from != nullptr && place < from->count;
            // Directions that are written to the stack need no prefetch.
            if constexpr (Types::kWritesDirections)
                has_weights_ = is_there_ && from->weight == from->direction;
            if (is_there_) block_ = block_at(*from, place);
        }
        /// Prefetches one unit that begins e elements later.
        FLASHOPTIM_INLINE void fetch(int e) const {
            if (!is_there_) return;
            if (has_weights_) fetch(block_.weight, e, sizeof(Stored));
            if constexpr (kHasCorrection) fetch(block_.correction, e, sizeof(Correction));
            for_each_moment<R>(
                [&](auto n) __attribute__((always_inline)) { fetch(block_.codes[n], e, sizeof(Code<n>)); });
            if (gradient_dtype_ == DType::kFloat32) {
                fetch(block_.gradient, e, 4);
            } else {
                fetch(block_.gradient, e, 2);
            }
        }

    private:
        static FLASHOPTIM_INLINE void fetch(const void* block, int e, int size) {
            constexpr int kLine = 64;
            const auto* from = static_cast<const char*>(block) + static_cast<std::ptrdiff_t>(e) * size;
            FLASHOPTIM_UNROLL
            for (int at = 0; at < kUnitSize * size; at += kLine) __builtin_prefetch(from + at);
        }
        Block block_{};
        DType gradient_dtype_ = DType::kFloat32;
        bool is_there_ = false, has_weights_ = true;
    };

    /// One moment of a block between the two loops over it, and its groups' scales.
    struct Pending : GroupScales<L, M> {
        alignas(64) float values[kBlockSize];
        float gap[48];  // see DitherTables
        alignas(64) std::uint32_t largest[kGroupsPerBlock][L::kWidth];
        alignas(64) float reciprocal[kGroupsPerBlock];  // 1 / encode, for formats with kDivides

        FLASHOPTIM_INLINE void read_scales(const std::uint16_t* from, int groups, float scale_factor) {
            GroupScales<L, M>::read_scales(from, groups, scale_factor);
            if (groups < kGroupsPerBlock) std::memset(largest, 0, sizeof largest);
        }
    };
    struct Nothing {};
    struct Buffers {
        alignas(64) float weight[kBlockSize];
        float gap1[16];
        alignas(64) float gradient[kBlockSize];
        float gap2[32];
        std::conditional_t<kGrouped, Pending, Nothing> moment[kBuffers];
    };

    /// Steps vector j of the unit at e, in registers. The result is the new weight.
    static FLASHOPTIM_INLINE Float update(const StepScalars& k, const Block& b, const float* gradient, int e,
                                          int j, const OldMoments<L, M, R>& old, Watch& watch,
                                          NewMoments<L, R>& next) {
        Float w = W::template decode_in_unit<L>(b.weight + e, correction_at(b, e), j);
        watch.weight(w);
        const Float g = R::template effective_gradient<L>(L::load_f32(gradient + e + j * L::kWidth), w, k);
        if constexpr (!kRootShowsGradient) watch.gradient(g);
        Types::template update<L, true>(g, w, old, next, k);
        if constexpr (R::kDividesMoments) {
            for_each_moment<R>([&](auto n) __attribute__((always_inline)) { watch.dividend(next.value[n]); });
        }
        watch.weight(w);
        return w;
    }

    /// Steps a padded block with `size` real elements. Returns false if the block is not ordinary.
    static bool step_tail(const Segment& s, const Block& b, int size, std::uint32_t place,
                          const Ahead& ahead) {
        if constexpr (kGrouped) {
            return step_groups(s, b, kTail, place, ahead);
        } else {
            alignas(64) float gradient[kTail];
            read_gradient<L>(b.gradient, s.gradient_dtype, s.gradient_factor, kTail, gradient);
            bool is_ordinary = true;
            for (int e = 0; e < size; e += kUnitSize) {
                ahead.fetch(e);
                const int vectors = (size - e + L::kWidth - 1) / L::kWidth;
                is_ordinary = step_unit(s, b, gradient, e, place, vectors) && is_ordinary;
            }
            return is_ordinary;
        }
    }

    /// Steps whole groups. Returns false and writes nothing if they are not ordinary.
    static bool step_groups(const Segment& s, const Block& b, int size, std::uint32_t place,
                            const Ahead& ahead) {
        const StepScalars& k = *s.scalars;
        const int groups = size / kGroup;
        Buffers buffers;
        Watch watch;
        read_gradient<L>(b.gradient, s.gradient_dtype, s.gradient_factor, size, buffers.gradient);
        for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
            if constexpr (kIsGrouped<n>) {
                buffers.moment[n].read_scales(b.scales[n], groups, k.moment[n].factor);
            }
        });

        UInt largest[kBuffers] = {};  // magnitudes, as bits
        for (int e = 0; e < size; e += kUnitSize) {
            ahead.fetch(e);
            FLASHOPTIM_UNROLL
            for (int j = 0; j < L::kUnit; ++j) {
                const int at = e + j * L::kWidth, group = at / kGroup;
                OldMoments<L, M, R> old;
                for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
                    old.template at<n>() = {
                        MomentFormat<n>::template unit_of_vector<L>(b.template code<n>() + e, j),
                        L::broadcast(kIsGrouped<n> ? buffers.moment[n].factor[group] : k.moment[n].factor)};
                });
                NewMoments<L, R> next;
                const Float w = update(k, b, buffers.gradient, e, j, old, watch, next);
                L::store_f32(buffers.weight + at, w);
                // A unit may span several groups, or a part of one.
                const bool begins = kVectorsInGroup > L::kUnit ? at % kGroup == 0 : j % kVectorsInGroup == 0;
                const bool ends = (j + 1) % kVectorsInGroup == 0 || j + 1 == L::kUnit;
                for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
                    const Float kept = Types::template kept<n, L>(next);
                    L::store_f32(buffers.moment[n].values + at, kept);
                    if constexpr (!kIsGrouped<n>) return;
                    if constexpr (Types::template kIsSquared<n>) {
                        largest[n] = begins ? L::bits(kept) : L::max_bits(largest[n], L::bits(kept));
                    } else {
                        largest[n] =
                            L::bits(L::max_magnitude(begins ? Float{} : L::from_bits(largest[n]), kept));
                    }
                    if (ends) L::store_u32(buffers.moment[n].largest[group], largest[n]);
                });
            }
        }
        if (!watch.is_quiet()) return false;
        constexpr int kShown = kRootShowsGradient ? Types::kFirstSquared : -1;
        if constexpr (kShown >= 0) {
            if (!new_scales<kShown, true>(buffers.moment[kShown], groups, k.moment[kShown])) return false;
        }
        for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
            if constexpr (n != kShown && kIsGrouped<n>) {
                new_scales<n, false>(buffers.moment[n], groups, k.moment[n]);
            }
        });
        encode(s, b, size, place, buffers);
        return true;
    }

    /// Chooses the new scales of moment n. Returns false if a group's maximum shows a bad gradient.
    template <int n, bool kShowsGradient>
    static FLASHOPTIM_INLINE bool new_scales(Pending& moment, int groups, const MomentScalars& k) {
        for (int at = 0; at < groups; at += L::kWidth) {
            const auto largest = L::from_bits(L::row_maxima(moment.largest + at));
            const auto old_scale = L::load_f32(moment.old_scale + at);
            if constexpr (kShowsGradient) {
                if (L::any(L::negate(L::less(largest, L::broadcast(0x1p47F))))) return false;
            }
            Float scale, encode;
            MomentFormat<n>::template new_scale<L>(largest, old_scale, k, scale, encode);
            L::store_f32(moment.new_scale + at, scale);
            L::store_f32(moment.encode + at, encode);
            if constexpr (M::kDivides) {
                L::store_f32(moment.reciprocal + at, L::divide(L::broadcast(1.0F), encode));
            }
        }
        return true;
    }

    static FLASHOPTIM_INLINE void encode(const Segment& s, const Block& b, int size, std::uint32_t place,
                                         const Buffers& buffers) {
        const DitherTables& dither = *s.dither;
        for (int e = 0; e < size; e += kUnitSize) {
            const auto from = place + static_cast<std::uint32_t>(e);
            Unit weight;
            FLASHOPTIM_UNROLL
            for (int j = 0; j < L::kUnit; ++j) weight[j] = L::load_f32(buffers.weight + e + j * L::kWidth);
            W::template encode_unit<L>(weight, dither, from, b.weight + e, correction_at(b, e));
            for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
                encode_unit<n>(buffers.moment[n], dither.moment[n].entry + from, e, b.template code<n>() + e);
            });
        }
        for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
            if constexpr (kIsGrouped<n>) buffers.moment[n].write_scales(b.scales[n], size / kGroup);
        });
    }
    template <int n>
    static FLASHOPTIM_INLINE void encode_unit(const Pending& moment, const std::uint32_t* dither, int e,
                                              Code<n>* to) {
        if constexpr (kIsGrouped<n>) {
            UInt sum[L::kUnit];
            FLASHOPTIM_UNROLL
            for (int j = 0; j < L::kUnit; ++j) {
                const int at = e + j * L::kWidth;
                sum[j] = MomentFormat<n>::template sum<L>(
                    L::load_f32(moment.values + at), L::broadcast(moment.encode[at / kGroup]),
                    L::broadcast(moment.reciprocal[at / kGroup]), L::load_u32(dither + j * L::kWidth));
            }
            L::template store_byte<M::kCodeShift>(to, sum, MomentFormat<n>::kFlip);
        } else {
            Unit values;
            FLASHOPTIM_UNROLL
            for (int j = 0; j < L::kUnit; ++j) values[j] = L::load_f32(moment.values + e + j * L::kWidth);
            MomentFormat<n>::template store_unit<L>(to, values, dither);
        }
    }

    /// Steps a block whose moments have no groups. Each unit is checked and written alone. Returns the number
    /// of elements that were skipped.
    static std::uint64_t step_units(const Segment& s, std::int64_t at, int size) {
        const Block b = block_at(s, at);
        const auto place = place_at(s, at);
        const Ahead ahead(s, at);
        alignas(64) float gradient[kBlockSize];
        read_gradient<L>(b.gradient, s.gradient_dtype, s.gradient_factor, size, gradient);
        std::uint64_t bad = 0;
        for (int e = 0; e < size; e += kUnitSize) {
            ahead.fetch(e);
            if (!step_unit(s, b, gradient, e, place, L::kUnit)) [[unlikely]] {
                bad += refer(s, at + e, kUnitSize);
            }
        }
        return bad;
    }

    /// Steps the first `vectors` vectors of a unit and takes the others as zeros. Returns false and writes
    /// nothing if the unit is not ordinary.
    static FLASHOPTIM_INLINE bool step_unit(const Segment& s, const Block& b, const float* gradient, int e,
                                            std::uint32_t place, int vectors) {
        const StepScalars& k = *s.scalars;
        Watch watch;
        Unit weight{};
        NewMoments<L, R> next[L::kUnit];
        FLASHOPTIM_UNROLL
        for (int j = 0; j < L::kUnit; ++j) {
            if (j >= vectors) break;
            OldMoments<L, M, R> old;
            for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
                old.template at<n>() = {
                    MomentFormat<n>::template unit_of_vector<L>(b.template code<n>() + e, j),
                    L::broadcast(k.moment[n].factor)};
            });
            weight[j] = update(k, b, gradient, e, j, old, watch, next[j]);
        }
        if (!watch.is_quiet()) return false;
        W::template encode_unit<L>(weight, *s.dither, place + static_cast<std::uint32_t>(e), b.weight + e,
                                   correction_at(b, e));
        for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
            Unit values;
            FLASHOPTIM_UNROLL
            for (int j = 0; j < L::kUnit; ++j) values[j] = Types::template kept<n, L>(next[j]);
            MomentFormat<n>::template store_unit<L>(
                b.template code<n>() + e, values,
                s.dither->moment[n].entry + place + static_cast<std::uint32_t>(e));
        });
        return true;
    }

    static FLASHOPTIM_INLINE Correction* correction_at(const Block& b, int e) {
        if constexpr (kHasCorrection) return b.correction + e;
        return nullptr;
    }
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
