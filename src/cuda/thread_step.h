// The work of one thread in a step: it decodes, updates and encodes eight consecutive elements in registers.
// If any of them is not ordinary (step/fast_kernel.h), it steps them again one by one with the operations of
// the reference kernel. Compiles for the host too. block_step.h has the work of the warp and of the thread
// block.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/words.h"
#include "step/watch.h"

// For code that rarely runs: it is not inlined, so that it costs the common path no registers. Its arguments
// lie in memory, so callers pass copies.
#if defined(__CUDACC__)
#define FLASHOPTIM_OUT_OF_LINE static __host__ __device__ __noinline__
#else
#define FLASHOPTIM_OUT_OF_LINE static inline
#endif

namespace flashoptim::cuda {

/// The dither of a thread's elements, in place of DitherTables: on a GPU computing it is cheaper than reading
/// tables.
template <class R>
struct RunDither {
    struct Table {
        std::uint32_t entry[kElements];
    };
    static constexpr int kBuffers = R::Moments::kCount > 0 ? R::Moments::kCount : 1;
    Table weight;  // the tables of DitherTables
    Table weight8;
    Table weight16;
    Table moment[kBuffers];

    FLASHOPTIM_INLINE RunDither(std::uint32_t step, std::uint32_t place) {
        const auto first_bits = dither_bits(step, place, kDitherSaltWeight);
        FLASHOPTIM_UNROLL
        for (int e = 0; e < kElements; ++e) {
            weight.entry[e] = first_bits + dither_bits(0, static_cast<std::uint32_t>(e), 0);
        }
        if (place > kDitherPeriod - kElements) {
            FLASHOPTIM_UNROLL
            for (int e = 0; e < kElements; ++e) {
                // After the end of its period the sequence starts again.
                const bool is_beyond = place + static_cast<std::uint32_t>(e) >= kDitherPeriod;
                weight.entry[e] -= is_beyond ? dither_bits(0, kDitherPeriod, 0) : 0U;
            }
        }
        FLASHOPTIM_UNROLL
        for (int e = 0; e < kElements; ++e) {
            weight8.entry[e] = (weight.entry[e] >> 24U) + 0x8000U;
            weight16.entry[e] = weight.entry[e] >> 16U;
            for_each_moment<R>([&](auto n) {
                constexpr auto kKind = R::Moments::template kKind<n>;
                moment[n].entry[e] = dither_of_code(kKind, weight.entry[e] + dither_salt_of_moment(n));
            });
        }
    }
};

template <class R, class M, class W>
class ThreadStep : BlockTypes<R, M, W> {
    using Types = BlockTypes<R, M, W>;
    using typename Types::Stored, typename Types::Correction;
    using Types::kMoments, Types::kGrouped, Types::kHasCorrection, Types::kRootShowsGradient;
    template <int n>
    using MomentFormat = typename Types::template MomentFormat<n>;
    template <int n>
    using Code = typename Types::template Code<n>;
    template <int n>
    static constexpr bool kIsGrouped = Types::template kIsGrouped<n>;
    /// The codes of the rule's moments; at<n>() is those of moment n.
    template <int kPlace = 0, bool kIsThere = (kPlace < R::Moments::kCount)>
    struct CodeWords : CodeWords<kPlace + 1> {
        Words<Code<kPlace>> words;
        template <int n>
        FLASHOPTIM_INLINE auto& at() {
            if constexpr (n == kPlace) {
                return words;
            } else {
                return CodeWords<kPlace + 1>::template at<n>();
            }
        }
        template <int n>
        [[nodiscard]] FLASHOPTIM_INLINE const auto& at() const {
            if constexpr (n == kPlace) {
                return words;
            } else {
                return CodeWords<kPlace + 1>::template at<n>();
            }
        }
    };
    template <int kPlace>
    struct CodeWords<kPlace, false> {
        /// Never called; for rules without moments.
        template <int n>
        Words<float>& at() const;
    };
    using L = CudaLanes;
    static constexpr int kBuffers = kMoments > 0 ? kMoments : 1;
    /// Whether the kernel tracks the ranges of the operands of division and root, so that CudaUnguardedLanes
    /// may compute them.
    static constexpr bool kHasUnguarded = kRootShowsGradient && requires { R::kDividesFirstByRootOfSecond; };

public:
    static constexpr bool kHasGroups = kGrouped;
    static constexpr int kScales = kGrouped ? kMoments : 0;
    /// The moment whose scale this thread chooses. The threads of a group divide the moments among
    /// themselves.
    static FLASHOPTIM_INLINE int moment_of(int thread) {
        if constexpr (kMoments < 2) {
            return 0;
        } else if constexpr (kMoments == 2) {
            return thread % 2;
        } else {
            const int in_group = thread % kThreadsInGroup;
            return in_group < kMoments ? in_group : 0;
        }
    }
    static FLASHOPTIM_INLINE ChunkView view_of(const DeviceTensor& t, const Chunk& chunk, int groups) {
        int code_sizes[kMaxMoments] = {};
        for_each_moment<R>([&](auto n) { code_sizes[n] = static_cast<int>(sizeof(Code<n>)); });
        return {t, chunk, groups, sizeof(Stored), sizeof(Correction), code_sizes};
    }
    /// The largest magnitude of each moment as bits: of this thread's elements, and after share_maxima() of
    /// the group.
    std::uint32_t largest[kBuffers] = {};
    /// The new scale and the encoding factor of each moment: only this thread's moment at first, all after
    /// share_scales().
    float scale[kBuffers] = {}, encode[kBuffers] = {};

    /// Loads and updates the elements of the run; writes nothing. Returns the number of skipped elements.
    /// `far` is k in memory, for the rare path.
    FLASHOPTIM_INLINE int update(const DeviceTensor& t, const StepScalars& k, const StepScalars& far,
                                 float factor, const Run& run) {
        run_ = run;
        Words<float> gradient;
        if (run.is_whole) {
            load<true>(t, gradient);
        } else {
            load<false>(t, gradient);
        }
        convert_gradient(gradient_, gradient, t.gradient_dtype, factor);
        for_each_moment<R>([&](auto n) {
            if constexpr (kIsGrouped<n>) old_scale_[n] = old_scale(t.scales[n]);
        });
        if constexpr (kHasUnguarded) {
            // If decay and steps are small, a weight that is not ordinary gives a new weight that is not
            // ordinary either. So checking the new weights is enough.
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

    /// Chooses the new scale of this thread's moment. Call it after share_maxima().
    FLASHOPTIM_INLINE void choose_scale(const StepScalars& k, int thread) {
        const int mine = moment_of(thread);
        std::uint32_t bits = largest[0];
        float old = old_scale_[0];
        MomentScalars scalars = k.moment[0];
        bool is_squared = Types::template kIsSquared<0>;
        for_each_moment<R>([&](auto n) {
            if (n != mine) return;
            bits = largest[n];
            old = old_scale_[n];
            scalars = k.moment[n];
            is_squared = Types::template kIsSquared<n>;
        });
        float new_scale = 0.0F, new_encode = 0.0F;
        M::template new_scale_of<L>(is_squared, L::from_bits(bits), old, scalars, new_scale, new_encode);
        for_each_moment<R>([&](auto n) {
            if (n != mine) return;
            scale[n] = new_scale;
            encode[n] = new_encode;
        });
    }

    /// Encodes the elements and writes them and the scales.
    FLASHOPTIM_INLINE void finish(const DeviceTensor& t, std::uint32_t step, int thread) {
        if (is_ordinary_) {
            encode_ordinary(step);
            store(t);
        } else {
            ThreadStep copy = *this;
            encode_one_by_one(copy, step);
            copy.store(t);
        }
        if constexpr (kGrouped) {
            // Thread n of a group writes the scale of moment n.
            if (thread % kThreadsInGroup >= kMoments || run_.count_in_group <= 0) return;
            const int mine = moment_of(thread);
            auto* to = t.scales[0];
            float chosen = scale[0];
            bool has_scale = kIsGrouped<0>;
            for_each_moment<R>([&](auto n) {
                to = n == mine ? t.scales[n] : to;
                chosen = n == mine ? scale[n] : chosen;
                has_scale = n == mine ? kIsGrouped<n> : has_scale;
            });
            if (has_scale) L::store_u16(to + run_.group, M::template scale_bits<L>(chosen));
        }
    }

private:
    template <bool kWhole>
    FLASHOPTIM_INLINE void load(const DeviceTensor& t, Words<float>& gradient) {
        load_run<kWhole>(stored_, t.weight, run_);
        load_gradient<kWhole>(gradient, t, run_);
        for_each_moment<R>([&](auto n) { load_run<kWhole>(code_.template at<n>(), t.codes[n], run_); });
        if constexpr (kHasCorrection) load_run<kWhole>(correction_, t.correction, run_);
    }
    FLASHOPTIM_INLINE void store(const DeviceTensor& t) const {
        if (run_.is_whole) {
            store<true>(t);
        } else {
            store<false>(t);
        }
    }
    template <bool kWhole>
    FLASHOPTIM_INLINE void store(const DeviceTensor& t) const {
        store_run<kWhole>(t.weight, stored_, run_);
        for_each_moment<R>([&](auto n) { store_run<kWhole>(t.codes[n], code_.template at<n>(), run_); });
        if constexpr (kHasCorrection) store_run<kWhole>(t.correction, correction_, run_);
    }

    FLASHOPTIM_INLINE float old_scale(const std::uint16_t* scales) const {
        return run_.count_in_group <= 0 ? 0.0F
                                        : M::template scale_to_float<L>(L::load_u16(scales + run_.group));
    }
    /// The old moments with their factors; the units are filled in for each element.
    template <class Lanes>
    FLASHOPTIM_INLINE OldMoments<Lanes, M, R> old_moments(const StepScalars& k) const {
        OldMoments<Lanes, M, R> old;
        for_each_moment<R>([&](auto n) {
            if constexpr (kIsGrouped<n>) {
                old.template at<n>().factor = old_scale_[n] * k.moment[n].factor;
            } else {
                old.template at<n>().factor = k.moment[n].factor;
            }
        });
        return old;
    }

    /// Updates all elements as ordinary ones. Returns whether they are ordinary (step/fast_kernel.h).
    /// Unguarded lanes accept a smaller range.
    template <class Lanes>
    FLASHOPTIM_INLINE bool update_ordinary(const StepScalars& k) {
        constexpr bool kUnguarded = std::is_same_v<Lanes, CudaUnguardedLanes>;
        Watch<L, R, W> watch;
        std::uint32_t smallest_first = ~0U, smallest_second = ~0U;  // bits - 1, so that zeros come last
        auto old = old_moments<Lanes>(k);
        FLASHOPTIM_UNROLL
        for (int n = 0; n < kBuffers; ++n) largest[n] = 0;
        FLASHOPTIM_UNROLL
        for (int j = 0; j < kElements; ++j) {
            float w = W::template decode_in_unit<L>(stored_.elements(), correction_.elements(), j);
            if constexpr (!kUnguarded) watch.weight(w);
            const float g = R::template effective_gradient<L>(gradient_[j], w, k);
            if constexpr (!kRootShowsGradient) watch.gradient(g);
            for_each_moment<R>([&](auto n) {
                old.template at<n>().unit =
                    MomentFormat<n>::template unit_of_vector<L>(code_.template at<n>().elements(), j);
            });
            NewMoments<Lanes, R> next;
            Types::template update<Lanes>(g, w, old, next, k);
            watch.weight(w);
            if constexpr (kUnguarded) {
                smallest_first = L::min_bits(smallest_first, L::bits(next.value[0]) * 2 - 1);
                smallest_second = L::min_bits(smallest_second, L::bits(next.value[1]) - 1);
            }
            weight_[j] = w;
            for_each_moment<R>([&](auto n) {
                const float kept = Types::template kept<n, Lanes>(next);
                moment_[n][j] = kept;
                if constexpr (kIsGrouped<n>) {
                    if constexpr (Types::template kIsSquared<n>) {
                        largest[n] = L::max_bits(largest[n], L::bits(kept));
                    } else {
                        largest[n] = L::bits(L::max_magnitude(L::from_bits(largest[n]), kept));
                    }
                }
            });
        }
        bool is_quiet = watch.is_quiet();
        if constexpr (kRootShowsGradient) {
            is_quiet = is_quiet && L::from_bits(largest[Types::kFirstSquared]) < 0x1p47F;
        }
        if constexpr (kUnguarded) {
            const auto bound = L::bits(Lanes::kSmallest) - 1;
            const float divisor = L::fma(L::from_bits(largest[1]), k.root_scale, k.epsilon);
            is_quiet = is_quiet && smallest_first >= bound * 2 + 1 && smallest_second >= bound &&
                       L::from_bits(largest[0]) <= 0x1p60F && divisor <= 0x1p30F;
        }
        return is_quiet;
    }

    FLASHOPTIM_INLINE void encode_ordinary(std::uint32_t step) {
        const RunDither<R> dither(step, run_.place);
        W::template encode_unit<L>(weight_, dither, 0, stored_.elements(), correction_.elements());
        for_each_moment<R>([&](auto n) {
            encode_unit<M, MomentFormat<n>>(moment_[n], encode[n], dither.moment[n].entry,
                                            code_.template at<n>().elements());
        });
    }
    /// Encodes and stores the elements of one moment, which is in format Moment of the format Format.
    template <class Format, class Moment>
    static FLASHOPTIM_INLINE void encode_unit(const float (&moment)[kElements], float encode,
                                              const std::uint32_t* dither, typename Moment::Code* to) {
        if constexpr (Moment::kGrouped) {
            const float reciprocal = reciprocal_of(encode);
            std::uint32_t sum[kElements];
            FLASHOPTIM_UNROLL
            for (int j = 0; j < kElements; ++j) {
                sum[j] = Moment::template sum<L>(moment[j], encode, reciprocal, dither[j]);
            }
            L::template store_byte<Format::kCodeShift>(to, sum, Moment::kFlip);
        } else {
            Moment::template store_unit<L>(to, moment, dither);
        }
    }
    static FLASHOPTIM_INLINE float reciprocal_of(float encode) {
        if constexpr (M::kDivides && L::kHasFastFma) return L::divide(1.0F, encode);
        return 0.0F;
    }

    /// Updates the elements one by one with the operations of reference_kernel.h. Returns the number of bad
    /// elements.
    FLASHOPTIM_OUT_OF_LINE int update_one_by_one(ThreadStep& s, const StepScalars& k, bool checks_gradient) {
        using S = ScalarLanes;
        auto old = s.template old_moments<S>(k);
        float largest[kBuffers] = {};
        int bad_count = 0;
        s.bad_ = s.kept_ = 0;
        for (int e = 0; e < s.run_.count; ++e) {
            const auto old_high = s.load_stored(e), old_low = s.load_correction(e);
            float w = W::template decode<S>(old_high, old_low);
            const float g = R::template effective_gradient<S>(s.gradient_[e], w, k);
            for_each_moment<R>([&](auto n) { old.template at<n>().unit = s.template unit_of<n>(e); });
            NewMoments<S, R> next;
            Types::template update<S>(g, w, old, next, k);

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
            }
            s.weight_[e] = w;
            for_each_moment<R>([&](auto n) {
                float kept = Types::template kept<n, S>(next);
                if (bad) {
                    kept = kept_moment<kIsGrouped<n>>(old.template at<n>().unit, s.old_scale_[n],
                                                      MomentFormat<n>::kUnit, k.moment[n].measure);
                }
                s.moment_[n][e] = kept;
                largest[n] =
                    S::max_ignoring_nan(largest[n], Types::template kIsSquared<n> ? kept : absolute<S>(kept));
            });
        }
        for (int n = 0; n < kBuffers; ++n) s.largest[n] = S::bits(largest[n]);
        return bad_count;
    }
    /// An old moment in carried units. A bad element keeps it.
    template <bool kInGroup>
    static FLASHOPTIM_INLINE float kept_moment(float unit, float scale, float unit_value, float measure) {
        if constexpr (!kInGroup) return unit;
        return ScalarLanes::divide(unit * (scale * unit_value), measure);
    }
    template <int n>
    [[nodiscard]] FLASHOPTIM_INLINE float unit_of(int e) const {
        const auto code = code_.template at<n>().get(e);
        if constexpr (std::is_same_v<Code<n>, float>) {
            return code;
        } else {
            const auto bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(code));
            return MomentFormat<n>::template unit<ScalarLanes>(bits);
        }
    }

    FLASHOPTIM_OUT_OF_LINE void encode_one_by_one(ThreadStep& s, std::uint32_t step) {
        using S = ScalarLanes;
        for (int e = 0; e < s.run_.count; ++e) {
            const auto place = (s.run_.place + static_cast<std::uint32_t>(e)) % kDitherPeriod;
            const auto bits = [&](std::uint32_t salt) { return dither_bits(step, place, salt); };
            const bool bad = ((s.bad_ >> static_cast<unsigned>(e)) & 1U) != 0;
            if (((s.kept_ >> static_cast<unsigned>(e)) & 1U) == 0) {
                std::uint32_t high = 0, low = 0;
                W::template encode<S>(s.weight_[e], bits(kDitherSaltWeight), high, low);
                s.store_stored(e, high);
                s.store_correction(e, low);
            }
            for_each_moment<R>([&](auto n) {
                const float kept = s.moment_[n][e];
                auto& words = s.code_.template at<n>();
                if constexpr (std::is_same_v<Code<n>, float>) {
                    words.set(e, kept);
                } else {
                    const bool keeps_code =
                        kIsGrouped<n> && s.scale[n] == s.old_scale_[n] && s.scale[n] != 0.0F;
                    if (bad && keeps_code) return;
                    constexpr auto kKind = R::Moments::template kKind<n>;
                    const auto dither = dither_of_code(kKind, bits(dither_salt_of_moment(n)));
                    words.set(e, static_cast<Code<n>>(
                                     MomentFormat<n>::template code<S>(kept, s.encode[n], dither)));
                }
            });
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
    // The elements as stored: the old ones, and after encoding the new ones.
    Words<Stored> stored_;
    Words<Correction> correction_;
    CodeWords<> code_;
    float gradient_[kElements] = {};
    // The new weights, and the new moments in carried units (the roots of squared moments in groups).
    float weight_[kElements] = {}, moment_[kBuffers][kElements] = {};
    float old_scale_[kBuffers] = {};
    std::uint32_t bad_ = 0, kept_ = 0;  // one bit per element
    bool is_ordinary_ = true;
};

}  // namespace flashoptim::cuda
