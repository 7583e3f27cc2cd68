// One run of elements of a segment, typed; and the padded copy of a run that is too short for vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "flashoptim/format/groups.h"
#include "step/kernels.h"

namespace flashoptim::inline FLASHOPTIM_ISA {

constexpr int kGroup = static_cast<int>(kGroupSize);

/// The scales of a block's groups: as they were, and what a step makes of them.
template <class L, class M>
struct GroupScales {
    alignas(64) float old_scale[kGroupsPerBlock];
    alignas(64) float factor[kGroupsPerBlock];  // of old moments, with their decay
    alignas(64) float new_scale[kGroupsPerBlock];
    alignas(64) float encode[kGroupsPerBlock];

    /// Beyond the last of `groups` they are zero.
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

template <class R, class M, class W>
struct BlockTypes {
    using Stored = typename W::Stored;
    static constexpr bool kHasCorrection = !std::is_void_v<typename W::Correction>;
    using Correction = std::conditional_t<kHasCorrection, typename W::Correction, std::int8_t>;
    using FirstCode = typename M::FirstCode;
    using SecondCode = typename M::SecondCode;
    static constexpr bool kFirst = R::kHasFirst, kSecond = R::kHasSecond, kGrouped = M::kGrouped;

    struct Block {
        Stored* weight;
        Correction* correction;
        FirstCode* first;
        std::uint16_t* first_scales;
        SecondCode* second;
        std::uint16_t* second_scales;
        const std::byte* gradient;
    };

    static FLASHOPTIM_INLINE Block block_at(const Segment& s, std::int64_t at) {
        Block b{};
        b.weight = static_cast<Stored*>(s.weight) + at;
        if constexpr (kHasCorrection) b.correction = static_cast<Correction*>(s.correction) + at;
        if constexpr (kFirst) b.first = static_cast<FirstCode*>(s.first) + at;
        if constexpr (kSecond) b.second = static_cast<SecondCode*>(s.second) + at;
        if constexpr (kGrouped && kFirst) b.first_scales = s.first_scales + at / kGroup;
        if constexpr (kGrouped && kSecond) b.second_scales = s.second_scales + at / kGroup;
        b.gradient = static_cast<const std::byte*>(s.gradient) +
                     at * static_cast<std::int64_t>(size_of(s.gradient_dtype));
        return b;
    }
    static FLASHOPTIM_INLINE std::uint32_t place_at(const Segment& s, std::int64_t at) {
        return (s.place + static_cast<std::uint32_t>(at % kDitherPeriod)) % kDitherPeriod;
    }

    /// The end of a segment, padded with zeros to kSize elements (whole groups) on the stack.
    template <int kSize>
    struct Tail {
        static constexpr int kGroups = kSize / kGroup;
        alignas(64) Stored weight[kSize] = {};
        alignas(64) Correction correction[kSize] = {};
        alignas(64) FirstCode first[kSize] = {};
        alignas(64) SecondCode second[kSize] = {};
        alignas(64) std::byte gradient[kSize * 4] = {};
        std::uint16_t first_scales[kGroups] = {};
        std::uint16_t second_scales[kGroups] = {};
        const Block home;
        const std::size_t size, groups;

        Tail(const Segment& s, const Block& from, int count)
            : home(from),
              size(static_cast<std::size_t>(count)),
              groups(static_cast<std::size_t>((count + kGroup - 1) / kGroup)) {
            std::memcpy(weight, home.weight, size * sizeof(Stored));
            if constexpr (kHasCorrection) std::memcpy(correction, home.correction, size * sizeof(Correction));
            if constexpr (kFirst) std::memcpy(first, home.first, size * sizeof(FirstCode));
            if constexpr (kSecond) std::memcpy(second, home.second, size * sizeof(SecondCode));
            if constexpr (kGrouped && kFirst) std::memcpy(first_scales, home.first_scales, groups * 2);
            if constexpr (kGrouped && kSecond) std::memcpy(second_scales, home.second_scales, groups * 2);
            std::memcpy(gradient, home.gradient, size * size_of(s.gradient_dtype));
        }
        [[nodiscard]] Block block() {
            return {weight, correction, first, first_scales, second, second_scales, gradient};
        }
        void write_back() const {
            std::memcpy(home.weight, weight, size * sizeof(Stored));
            if constexpr (kHasCorrection) std::memcpy(home.correction, correction, size * sizeof(Correction));
            if constexpr (kFirst) std::memcpy(home.first, first, size * sizeof(FirstCode));
            if constexpr (kSecond) std::memcpy(home.second, second, size * sizeof(SecondCode));
            if constexpr (kGrouped && kFirst) std::memcpy(home.first_scales, first_scales, groups * 2);
            if constexpr (kGrouped && kSecond) std::memcpy(home.second_scales, second_scales, groups * 2);
        }
    };
};

}  // namespace flashoptim::inline FLASHOPTIM_ISA
