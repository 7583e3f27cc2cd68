// What one thread does in a step: eight consecutive elements, decoded, updated and encoded in registers. Where anything among them
// is out of the ordinary, they are done again one by one with the reference's operations. Compiles for the host too; the warp's and
// the block's part is in block_step.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/words.h"
#include "step/watch.h"

// Code that hardly ever runs, kept out of the way of what does. What it works on lies in memory, so it is given copies.
#if defined(__CUDACC__)
#define FLASHOPTIM_OUT_OF_LINE static __host__ __device__ __noinline__
#else
#define FLASHOPTIM_OUT_OF_LINE static inline
#endif

namespace flashoptim::cuda {

/// The dither of a thread's elements in the place of the tables that other backends share: here computing it is cheaper.
struct RunDither {
    std::uint32_t weight[kElements];  // as in DitherTables
    std::uint32_t weight8[kElements];
    std::uint32_t weight16[kElements];
    std::uint32_t first[kElements];
    std::uint32_t second[kElements];

    FLASHOPTIM_INLINE RunDither(std::uint32_t step, std::uint32_t place) {
        const auto first_bits = dither_bits(step, place, kDitherSaltWeight);
        FLASHOPTIM_UNROLL
        for (int e = 0; e < kElements; ++e) {
            weight[e] = first_bits + dither_bits(0, static_cast<std::uint32_t>(e), 0);
        }
        if (place > kDitherPeriod - kElements) {
            FLASHOPTIM_UNROLL
            for (int e = 0; e < kElements; ++e) {
                // Beyond the end of the period it begins anew.
                const bool is_beyond = place + static_cast<std::uint32_t>(e) >= kDitherPeriod;
                weight[e] -= is_beyond ? dither_bits(0, kDitherPeriod, 0) : 0U;
            }
        }
        FLASHOPTIM_UNROLL
        for (int e = 0; e < kElements; ++e) {
            weight8[e] = (weight[e] >> 24U) + 0x8000U;
            weight16[e] = weight[e] >> 16U;
            first[e] = dither_above_384(weight[e] + kDitherSaltFirst);
            second[e] = dither_above_256(weight[e] + kDitherSaltSecond);
        }
    }
};

template <class R, class M, class W>
class ThreadStep : BlockTypes<R, M, W> {
    using Types = BlockTypes<R, M, W>;
    using typename Types::Stored, typename Types::Correction, typename Types::FirstCode,
        typename Types::SecondCode;
    using Types::kFirst, Types::kSecond, Types::kGrouped, Types::kHasCorrection;
    using L = CudaLanes;
    /// Whether the root of the second moment is at least |g|, so that its maximum tells of bad gradients.
    static constexpr bool kRootShowsGradient = kGrouped && kSecond && M::kCarriesScaled;
    /// Whether operands of its division and root are tracked, so that they may be computed without a check of each.
    static constexpr bool kHasUnguarded = kRootShowsGradient;

public:
    static constexpr bool kHasGroups = kGrouped && (kFirst || kSecond);
    /// Where there are two moments, even threads choose the scale of the first and odd ones that of the second.
    static constexpr bool kHasTwoScales = kGrouped && kFirst && kSecond;
    static FLASHOPTIM_INLINE bool scales_second(int thread) {
        return kHasTwoScales ? thread % 2 != 0 : kSecond;
    }
    static FLASHOPTIM_INLINE ChunkView view_of(const TensorEntry& t, const Chunk& chunk, int groups) {
        return {t, chunk, groups, sizeof(Stored), sizeof(Correction), sizeof(FirstCode), sizeof(SecondCode)};
    }
    /// The bits of the largest magnitudes: of this thread's elements, then of their group.
    std::uint32_t largest_first = 0, largest_second = 0;
    /// The new scale that this thread chooses and its neighbour's, and the factors that codes are made with.
    float scale = 0.0F, encode = 0.0F, other_scale = 0.0F, other_encode = 0.0F;

    /// Loads and updates; nothing is written yet. Returns how many elements are skipped.
    /// `far` is k in memory.
    FLASHOPTIM_INLINE int update(const TensorEntry& t, const StepScalars& k, const StepScalars& far,
                                 float factor, const Run& run) {
        run_ = run;
        Words<float> gradient;
        if (run.is_whole) {
            load<true>(t, gradient);
        } else {
            load<false>(t, gradient);
        }
        convert_gradient(gradient_, gradient, t.gradient_dtype, factor);
        if constexpr (kGrouped && kFirst) first_scale_ = old_scale(t.first_scales);
        if constexpr (kGrouped && kSecond) second_scale_ = old_scale(t.second_scales);
        if constexpr (kHasUnguarded) {
            // A weight that is out of the ordinary stays so where it hardly decays and steps are small: new ones tell of the old.
            const bool old_shows = k.weight_factor >= 0.75F && k.weight_factor <= 1.0F &&
                                   k.learning_rate * k.update_limit <= 1024.0F;
            if (k.epsilon >= 0x1p-60F && k.l2 == 0.0F && old_shows) {
                auto without_l2 = k;
                without_l2.l2 = 0.0F;
                is_ordinary_ = update_ordinary<CudaUnguardedLanes>(without_l2);
                if (is_ordinary_) return 0;
            }
        }
        is_ordinary_ = update_ordinary<CudaLanes>(k);
        if (is_ordinary_) return 0;
        ThreadStep copy = *this;
        const int bad = update_one_by_one(copy, far, t.checks_gradient);
        *this = copy;
        return bad;
    }

    /// The new scale of a moment of the group, whose maximum must be known by now.
    FLASHOPTIM_INLINE void choose_scale(const StepScalars& k, int thread) {
        const bool second = scales_second(thread);
        const auto largest = second ? largest_second : largest_first;
        const float old = second ? second_scale_ : first_scale_;
        M::template either_scale<L>(second, L::from_bits(largest), old, second ? k.second : k.first, scale,
                                    encode);
    }

    /// Encodes and writes.
    FLASHOPTIM_INLINE void finish(const TensorEntry& t, std::uint32_t step, int thread) {
        Encoding encoding{step};
        if constexpr (kHasGroups) {
            const bool second = scales_second(thread);
            encoding.first = second ? other_encode : encode;
            encoding.second = second ? encode : other_encode;
            encoding.first_scale = second ? other_scale : scale;
            encoding.second_scale = second ? scale : other_scale;
        }
        if (is_ordinary_) {
            encode_ordinary(encoding);
            store(t);
        } else {
            ThreadStep copy = *this;
            const Encoding far = encoding;
            encode_one_by_one(copy, far);
            copy.store(t);
        }
        if constexpr (kHasGroups) {
            // The first threads of a group write what they chose.
            if (thread % kThreadsInGroup > (kHasTwoScales ? 1 : 0) || run_.count_in_group <= 0) return;
            auto* const scales = scales_second(thread) ? t.second_scales : t.first_scales;
            L::store_u16(scales + run_.group, M::template scale_bits<L>(scale));
        }
    }

private:
    /// What a group's elements are encoded with.
    struct Encoding {
        std::uint32_t step = 1;
        float first = 0.0F, first_scale = 0.0F;
        float second = 0.0F, second_scale = 0.0F;
    };

    template <bool kWhole>
    FLASHOPTIM_INLINE void load(const TensorEntry& t, Words<float>& gradient) {
        load_run<kWhole>(stored_, t.weight, run_);
        load_gradient<kWhole>(gradient, t, run_);
        if constexpr (kFirst) load_run<kWhole>(first_code_, t.first, run_);
        if constexpr (kSecond) load_run<kWhole>(second_code_, t.second, run_);
        if constexpr (kHasCorrection) load_run<kWhole>(correction_, t.correction, run_);
    }
    FLASHOPTIM_INLINE void store(const TensorEntry& t) const {
        if (run_.is_whole) {
            store<true>(t);
        } else {
            store<false>(t);
        }
    }
    template <bool kWhole>
    FLASHOPTIM_INLINE void store(const TensorEntry& t) const {
        store_run<kWhole>(t.weight, stored_, run_);
        if constexpr (kFirst) store_run<kWhole>(t.first, first_code_, run_);
        if constexpr (kSecond) store_run<kWhole>(t.second, second_code_, run_);
        if constexpr (kHasCorrection) store_run<kWhole>(t.correction, correction_, run_);
    }

    FLASHOPTIM_INLINE float old_scale(const std::uint16_t* scales) const {
        return run_.count_in_group <= 0 ? 0.0F
                                        : M::template scale_to_float<L>(L::load_u16(scales + run_.group));
    }
    template <class Lanes>
    FLASHOPTIM_INLINE typename M::template OldFirst<Lanes> old_first(const StepScalars& k) const {
        typename M::template OldFirst<Lanes> old{};
        if constexpr (kFirst && kGrouped) old.factor = first_scale_ * k.first.factor;
        if constexpr (kFirst && !kGrouped) old.factor = k.first.factor;
        return old;
    }
    template <class Lanes>
    FLASHOPTIM_INLINE typename M::template OldSecond<Lanes> old_second(const StepScalars& k) const {
        typename M::template OldSecond<Lanes> old{};
        if constexpr (kSecond && kGrouped) old.factor = second_scale_ * k.second.factor;
        if constexpr (kSecond && !kGrouped) old.factor = k.second.factor;
        return old;
    }

    /// All elements, as if nothing were out of the ordinary; returns whether that is so (step/fast_kernel.h). Unguarded lanes
    /// find more out of the ordinary than others.
    template <class Lanes>
    FLASHOPTIM_INLINE bool update_ordinary(const StepScalars& k) {
        constexpr bool kUnguarded = std::is_same_v<Lanes, CudaUnguardedLanes>;
        Watch<L, R, W> watch;
        std::uint32_t smallest_first = ~0U, smallest_second = ~0U;  // nonzero ones, less 1
        auto first_before = old_first<Lanes>(k);
        auto second_before = old_second<Lanes>(k);
        float largest = 0.0F;
        largest_second = 0;
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kElements; ++j) {
            float w = W::template decode_in_unit<L>(stored_.elements(), correction_.elements(), j);
            if constexpr (!kUnguarded) watch.weight(w);
            const float g = R::template effective_gradient<L>(gradient_[j], w, k);
            if constexpr (!kRootShowsGradient) watch.gradient(g);
            if constexpr (kFirst && kGrouped)
                first_before.unit = M::template first_in_unit<L>(first_code_.elements(), j);
            if constexpr (kFirst && !kGrouped) first_before.unit = L::from_bits(first_code_.word[j]);
            if constexpr (kSecond && kGrouped) {
                second_before.unit = M::template second_in_unit<L>(second_code_.elements(), j);
            }
            if constexpr (kSecond && !kGrouped) second_before.unit = L::from_bits(second_code_.word[j]);
            float first = 0.0F, second = 0.0F, root = 0.0F;
            R::template update<Lanes, M>(g, w, first_before, second_before, first, second, root, k);
            watch.weight(w);
            if constexpr (kUnguarded) {
                smallest_first = L::min_bits(smallest_first, L::bits(first) * 2 - 1);
                smallest_second = L::min_bits(smallest_second, L::bits(second) - 1);
            }
            weight_[j] = w;
            if constexpr (kFirst) first_[j] = first;
            if constexpr (kSecond) second_[j] = kGrouped ? root : second;
            if constexpr (kFirst && kGrouped) largest = L::max_magnitude(largest, first);
            if constexpr (kSecond && kGrouped) largest_second = L::max_bits(largest_second, L::bits(root));
        }
        largest_first = L::bits(largest);
        bool is_quiet = watch.is_quiet();
        if constexpr (kRootShowsGradient) is_quiet = is_quiet && L::from_bits(largest_second) < 0x1p47F;
        if constexpr (kUnguarded) {
            const auto bound = L::bits(Lanes::kSmallest) - 1;
            const float divisor = L::fma(L::from_bits(largest_second), k.root_scale, k.epsilon);
            is_quiet = is_quiet && smallest_first >= bound * 2 + 1 && smallest_second >= bound &&
                       largest <= 0x1p60F && divisor <= 0x1p30F;
        }
        return is_quiet;
    }

    FLASHOPTIM_INLINE void encode_ordinary(const Encoding& encoding) {
        const RunDither dither(encoding.step, run_.place);
        W::template encode_unit<L>(weight_, dither, 0, stored_.elements(), correction_.elements());
        if constexpr (kFirst && kGrouped) {
            const float reciprocal = reciprocal_of(encoding.first);
            std::uint32_t sum[kElements];
            FLASHOPTIM_UNROLL
            for (int j = 0; j < kElements; ++j) {
                sum[j] = M::template first_sum<L>(first_[j], encoding.first, reciprocal, dither.first[j]);
            }
            L::template store_byte<M::kCodeShift>(first_code_.elements(), sum, M::kFirstFlip);
        }
        if constexpr (kSecond && kGrouped) {
            const float reciprocal = reciprocal_of(encoding.second);
            std::uint32_t sum[kElements];
            FLASHOPTIM_UNROLL
            for (int j = 0; j < kElements; ++j) {
                sum[j] = M::template second_sum<L>(second_[j], encoding.second, reciprocal, dither.second[j]);
            }
            L::template store_byte<M::kCodeShift>(second_code_.elements(), sum, 0U);
        }
        if constexpr (!kGrouped) {
            FLASHOPTIM_UNROLL
            for (int j = 0; j < kElements; ++j) {
                if constexpr (kFirst) first_code_.word[j] = L::bits(first_[j]);
                if constexpr (kSecond) second_code_.word[j] = L::bits(second_[j]);
            }
        }
    }
    static FLASHOPTIM_INLINE float reciprocal_of(float encode) {
        if constexpr (M::kDivides && L::kHasFastFma) return L::divide(1.0F, encode);
        return 0.0F;
    }

    /// The reference: what reference_kernel.h does, for each element that there is.
    FLASHOPTIM_OUT_OF_LINE int update_one_by_one(ThreadStep& s, const StepScalars& k, bool checks_gradient) {
        using S = ScalarLanes;
        auto first_before = s.template old_first<S>(k);
        auto second_before = s.template old_second<S>(k);
        float largest_first = 0.0F, largest_second = 0.0F;
        int bad_count = 0;
        s.bad_ = s.kept_ = 0;
        for (int e = 0; e < s.run_.count; ++e) {
            const auto old_high = s.load_stored(e), old_low = s.load_correction(e);
            float w = W::template decode<S>(old_high, old_low);
            const float g = R::template effective_gradient<S>(s.gradient_[e], w, k);
            if constexpr (kFirst && kGrouped) {
                first_before.unit = M::template first_unit<S>(S::load_i8(s.first_code_.elements() + e));
            }
            if constexpr (kFirst && !kGrouped) first_before.unit = s.first_code_.get(e);
            if constexpr (kSecond && kGrouped) {
                second_before.unit = M::template second_unit<S>(S::load_u8(s.second_code_.elements() + e));
            }
            if constexpr (kSecond && !kGrouped) second_before.unit = s.second_code_.get(e);
            float first = 0.0F, second = 0.0F, root = 0.0F;
            R::template update<S, M>(g, w, first_before, second_before, first, second, root, k);
            if constexpr (kGrouped) second = root;

            bool bad = is_bad_gradient(g), keep = bad;
            if constexpr (W::kProtected) {
                const bool special = W::template is_special<S>(old_high);
                bad = bad || (is_nan<S>(w) && !special);
                keep = bad || special;
            } else if (!checks_gradient) {
                bad = keep = false;
            }
            if (keep) s.kept_ |= 1U << static_cast<unsigned>(e);
            if (bad) {
                s.bad_ |= 1U << static_cast<unsigned>(e);
                ++bad_count;
                if constexpr (kFirst) {
                    first = kept_moment(first_before.unit, s.first_scale_, M::kFirstUnit, k.first.measure);
                }
                if constexpr (kSecond) {
                    second =
                        kept_moment(second_before.unit, s.second_scale_, M::kSecondUnit, k.second.measure);
                }
            }
            s.weight_[e] = w;
            if constexpr (kFirst) {
                s.first_[e] = first;
                largest_first = S::max_ignoring_nan(largest_first, absolute<S>(first));
            }
            if constexpr (kSecond) {
                s.second_[e] = second;
                largest_second = S::max_ignoring_nan(largest_second, second);
            }
        }
        s.largest_first = S::bits(largest_first);
        s.largest_second = S::bits(largest_second);
        return bad_count;
    }
    /// An old moment in carried units.
    static FLASHOPTIM_INLINE float kept_moment(float unit, float scale, float unit_value, float measure) {
        if constexpr (!kGrouped) return unit;
        return ScalarLanes::divide(unit * (scale * unit_value), measure);
    }

    FLASHOPTIM_OUT_OF_LINE void encode_one_by_one(ThreadStep& s, const Encoding& encoding) {
        using S = ScalarLanes;
        const bool keeps_first = encoding.first_scale == s.first_scale_ && encoding.first_scale != 0.0F;
        const bool keeps_second = encoding.second_scale == s.second_scale_ && encoding.second_scale != 0.0F;
        for (int e = 0; e < s.run_.count; ++e) {
            const auto place = (s.run_.place + static_cast<std::uint32_t>(e)) % kDitherPeriod;
            const auto bits = [&](std::uint32_t salt) { return dither_bits(encoding.step, place, salt); };
            const bool bad = ((s.bad_ >> static_cast<unsigned>(e)) & 1U) != 0;
            if (((s.kept_ >> static_cast<unsigned>(e)) & 1U) == 0) {
                std::uint32_t high = 0, low = 0;
                W::template encode<S>(s.weight_[e], bits(kDitherSaltWeight), high, low);
                s.store_stored(e, high);
                s.store_correction(e, low);
            }
            if constexpr (kFirst && kGrouped) {
                if (!bad || !keeps_first) {
                    const auto dither = dither_above_384(bits(kDitherSaltFirst));
                    s.first_code_.set(e, static_cast<FirstCode>(
                                             M::template first_code<S>(s.first_[e], encoding.first, dither)));
                }
            }
            if constexpr (kSecond && kGrouped) {
                if (!bad || !keeps_second) {
                    const auto dither = dither_above_256(bits(kDitherSaltSecond));
                    s.second_code_.set(e, static_cast<SecondCode>(M::template second_code<S>(
                                              s.second_[e], encoding.second, dither)));
                }
            }
            if constexpr (kFirst && !kGrouped) s.first_code_.set(e, s.first_[e]);
            if constexpr (kSecond && !kGrouped) s.second_code_.set(e, s.second_[e]);
        }
    }

    [[nodiscard]] FLASHOPTIM_INLINE std::uint32_t load_stored(int e) const {
        if constexpr (std::is_same_v<Stored, float>) {
            return stored_.word[e];
        } else {
            return stored_.get(e);
        }
    }
    FLASHOPTIM_INLINE void store_stored(int e, std::uint32_t high) {
        if constexpr (std::is_same_v<Stored, float>) {
            stored_.word[e] = high;
        } else {
            stored_.set(e, static_cast<Stored>(high));
        }
    }
    [[nodiscard]] FLASHOPTIM_INLINE std::uint32_t load_correction(int e) const {
        if constexpr (!kHasCorrection) return 0;
        return static_cast<std::uint32_t>(static_cast<std::int32_t>(correction_.get(e)));
    }
    FLASHOPTIM_INLINE void store_correction(int e, std::uint32_t low) {
        if constexpr (kHasCorrection) correction_.set(e, static_cast<Correction>(low));
    }

    Run run_;
    // As they lie in memory: the old ones, then the new.
    Words<Stored> stored_;
    Words<Correction> correction_;
    Words<FirstCode> first_code_;
    Words<SecondCode> second_code_;
    float gradient_[kElements] = {};
    // New, in the units that the rule carries; of a second moment in groups its root.
    float weight_[kElements] = {}, first_[kElements] = {}, second_[kElements] = {};
    float first_scale_ = 0.0F, second_scale_ = 0.0F;  // the old ones
    std::uint32_t bad_ = 0, kept_ = 0;                // one bit for each element
    bool is_ordinary_ = true;
};

}  // namespace flashoptim::cuda
