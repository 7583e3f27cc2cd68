// A block: typed pointers to some elements of a segment. Also Tail, the padded copy of a block that is too
// short for whole vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "flashoptim/format/groups.h"
#include "flashoptim/rule/rules.h"
#include "step/kernels.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

constexpr int kGroup = static_cast<int>(kGroupSize);

/// The old and new scales of a block's groups.
template <class L, class M>
struct GroupScales {
    alignas(64) float old_scale[kGroupsPerBlock];
    alignas(64) float factor[kGroupsPerBlock];  // old scale times the decay
    alignas(64) float new_scale[kGroupsPerBlock];
    alignas(64) float encode[kGroupsPerBlock];

    /// Reads the scales of `groups` groups. The rest of the arrays becomes zero.
    FLASHOPTIM_INLINE void read_scales(const std::uint16_t* from, int groups, float scale_factor) {
        alignas(64) std::uint16_t bits[kGroupsPerBlock] = {};
        std::memcpy(bits, from, static_cast<std::size_t>(groups) * sizeof bits[0]);
        for (int n = 0; n < kGroupsPerBlock; n += L::kWidth) {
            const auto scale = M::template scale_to_float<L>(L::load_u16(bits + n));
            L::store_f32(old_scale + n, scale);
            L::store_f32(factor + n, scale * scale_factor);
        }
    }
    FLASHOPTIM_INLINE void write_scales(std::uint16_t* to, int groups) const {
        alignas(64) std::uint16_t bits[kGroupsPerBlock];
        for (int n = 0; n < groups; n += L::kWidth) {
            L::store_u16(bits + n, M::template scale_bits<L>(L::load_f32(new_scale + n)));
        }
        std::memcpy(to, bits, static_cast<std::size_t>(groups) * sizeof bits[0]);
    }
};

/// Whether the rule computes a direction. The paper's rules update the weight themselves.
template <class L, class R, class M>
constexpr bool kHasDirection =
    requires(typename L::Float g, const OldMoments<L, M, R>& old, NewMoments<L, R>& next,
             const StepScalars& k) { R::template direction<L, M>(g, old, next, k); };

template <class R, class M, class W>
struct BlockTypes {
    using Stored = typename W::Stored;
    static constexpr bool kHasCorrection = !std::is_void_v<typename W::Correction>;
    using Correction = std::conditional_t<kHasCorrection, typename W::Correction, std::int8_t>;
    /// Whether W is a format of directions, which are written in place of weights (two_passes.h).
    static constexpr bool kWritesDirections = requires { W::kIsDirection; };
    static constexpr int kMoments = R::Moments::kCount;
    /// How moment n is stored.
    template <int n>
    using MomentFormat = typename M::template Of<R::Moments::kind(n)>;
    template <int n>
    using Code = typename MomentFormat<n>::Code;
    template <int n>
    static constexpr bool kIsGrouped = MomentFormat<n>::kGrouped;
    template <int n>
    static constexpr bool kIsSquared = R::Moments::kind(n) == MomentKind::kSquared;
    /// Whether any moment from number n on is in groups, and the size of the largest code of these.
    template <int n = 0>
    static constexpr bool has_groups() {
        if constexpr (n < kMoments) {
            return kIsGrouped<n> || has_groups<n + 1>();
        } else {
            return false;
        }
    }
    template <int n = 0>
    static constexpr std::size_t largest_code() {
        if constexpr (n < kMoments) {
            return sizeof(Code<n>) > largest_code<n + 1>() ? sizeof(Code<n>) : largest_code<n + 1>();
        } else {
            return 1;
        }
    }
    static constexpr bool kGrouped = has_groups();
    /// The number of the first squared moment, or -1.
    static constexpr int kFirstSquared = [] {
        for (int n = 0; n < kMoments; ++n) {
            if (R::Moments::kind(n) == MomentKind::kSquared) return n;
        }
        return -1;
    }();
    /// Whether the root of a carried squared moment is at least |g|. Then the group's largest root shows
    /// whether the group has a bad gradient.
    static constexpr bool kRootShowsGradient = kGrouped && kFirstSquared >= 0 && M::kCarriesScaled;

    static constexpr int kBuffers = kMoments > 0 ? kMoments : 1;

    /// Holds pointers for the rule's own moments only, because a block is made often and more pointers cost
    /// stores.
    struct Block {
        Stored* weight;
        Correction* correction;
        void* codes[kBuffers];
        std::uint16_t* scales[kBuffers];
        const std::byte* gradient;

        template <int n>
        [[nodiscard]] FLASHOPTIM_INLINE Code<n>* code() const {
            return static_cast<Code<n>*>(codes[n]);
        }
    };

    static FLASHOPTIM_INLINE Block block_at(const Segment& s, std::int64_t at) {
        Block b{};
        b.weight = static_cast<Stored*>(s.weight) + at;
        if constexpr (kHasCorrection) b.correction = static_cast<Correction*>(s.correction) + at;
        for_each_moment<R>([&](auto n) __attribute__((always_inline)) {
            b.codes[n] = static_cast<Code<n>*>(s.codes[n]) + at;
            if constexpr (kIsGrouped<n>) b.scales[n] = s.scales[n] + at / kGroup;
        });
        b.gradient = static_cast<const std::byte*>(s.gradient) +
                     at * static_cast<std::int64_t>(size_of(s.gradient_dtype));
        return b;
    }
    static FLASHOPTIM_INLINE std::uint32_t place_at(const Segment& s, std::int64_t at) {
        return (s.place + static_cast<std::uint32_t>(at % kDitherPeriod)) % kDitherPeriod;
    }
    /// The value of moment n that is encoded: the root of a squared moment in groups, else the moment.
    template <int n, class L>
    static FLASHOPTIM_INLINE typename L::Float kept(const NewMoments<L, R>& next) {
        if constexpr (kIsGrouped<n> && kIsSquared<n>) {
            return next.root[n];
        } else {
            return next.value[n];
        }
    }
    /// Applies the rule to decoded values, one element in each lane.
    template <class L, bool kFits = false>
    static FLASHOPTIM_INLINE void update(typename L::Float g, typename L::Float& w,
                                         const OldMoments<L, M, R>& old, NewMoments<L, R>& next,
                                         const StepScalars& k) {
        if constexpr (kWritesDirections) {
            w = R::template direction<L, M>(g, old, next, k);
        } else if constexpr (kHasDirection<L, R, M>) {
            w = moved<L>(w, R::template direction<L, M>(g, old, next, k), k);
        } else if constexpr (R::kDividesMoments) {
            R::template update<L, M, kFits>(g, w, old, next, k);
        } else {
            R::template update<L, M>(g, w, old, next, k);
        }
    }

    /// A copy of the end of a segment on the stack, padded with zeros to kSize elements (whole groups).
    template <int kSize>
    struct Tail {
        static constexpr int kGroups = kSize / kGroup;
        alignas(64) Stored weight[kSize] = {};
        alignas(64) Correction correction[kSize] = {};
        alignas(64) std::byte codes[kBuffers][kSize * largest_code()] = {};
        alignas(64) std::byte gradient[kSize * 4] = {};
        std::uint16_t scales[kBuffers][kGroups] = {};
        const Block home;
        const std::size_t size, groups;

        Tail(const Segment& s, const Block& from, int count)
            : home(from),
              size(static_cast<std::size_t>(count)),
              groups(static_cast<std::size_t>((count + kGroup - 1) / kGroup)) {
            std::memcpy(weight, home.weight, size * sizeof(Stored));
            if constexpr (kHasCorrection) std::memcpy(correction, home.correction, size * sizeof(Correction));
            for_each_moment<R>([&](auto n) {
                std::memcpy(codes[n], home.codes[n], size * sizeof(Code<n>));
                if constexpr (kIsGrouped<n>) {
                    std::memcpy(scales[n], home.scales[n], groups * sizeof scales[n][0]);
                }
            });
            std::memcpy(gradient, home.gradient, size * size_of(s.gradient_dtype));
        }
        [[nodiscard]] Block block() {
            Block b{weight, correction, {}, {}, gradient};
            for (int n = 0; n < kMoments; ++n) {
                b.codes[n] = codes[n];
                b.scales[n] = scales[n];
            }
            return b;
        }
        void write_back() const {
            std::memcpy(home.weight, weight, size * sizeof(Stored));
            if constexpr (kHasCorrection) std::memcpy(home.correction, correction, size * sizeof(Correction));
            for_each_moment<R>([&](auto n) {
                std::memcpy(home.codes[n], codes[n], size * sizeof(Code<n>));
                if constexpr (kIsGrouped<n>) {
                    std::memcpy(home.scales[n], scales[n], groups * sizeof scales[n][0]);
                }
            });
        }
    };
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
