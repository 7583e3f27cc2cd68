// The headers of numeric/, format/ and rule/ as CUDA device code: every rule and every format in kernels of
// one thread for each group. Compiled only, never run; the fast kernels are elsewhere.
#include <cstdint>
#include <type_traits>

#include "flashoptim/format/dither_tables.h"
#include "flashoptim/format/groups.h"
#include "flashoptim/format/native_states.h"
#include "flashoptim/format/paper.h"
#include "flashoptim/format/weights.h"
#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/numeric/float16.h"
#include "flashoptim/rule/adam.h"
#include "flashoptim/rule/lion.h"
#include "flashoptim/rule/sgd.h"

namespace flashoptim {
namespace {

using L = ScalarLanes;
constexpr int kGroup = static_cast<int>(kGroupSize);

/// Buffers of one tensor whose element count is a multiple of 32.
struct Tensor {
    void *weight, *correction;
    void* codes[kMaxMoments];
    std::uint16_t* scales[kMaxMoments];
    const std::uint16_t* gradient;
    std::int64_t groups;
};

/// What does not depend on the element, made by one thread where step and learning rate lie in device memory.
template <class R, class M>
__global__ void prepare_step(const Hyperparameters* hyperparameters, const std::int64_t* step,
                             StepScalars* scalars, DitherTables* dither) {
    *scalars = R::template scalars<M>(*hyperparameters, *step, Decay::kDecoupled);
    scalars->has_momentum = *step > 1;
    MomentKind kinds[kMaxMoments] = {};
    for_each_moment<R>([&](auto n) { kinds[n] = R::Moments::template kKind<n>; });
    fill_dither_tables(*dither, *step, kinds, R::Moments::kCount);
}

/// How moment n of a rule is stored.
template <class R, class M, int n>
using FormatOf = typename M::template Of<R::Moments::template kKind<n>>;

template <class W>
__device__ std::uint32_t load_correction(const Tensor& t, std::int64_t n) {
    using Correction = typename W::Correction;
    if constexpr (std::is_void_v<Correction>) {
        return 0;
    } else {
        return static_cast<std::uint32_t>(
            static_cast<std::int32_t>(static_cast<const Correction*>(t.correction)[n]));
    }
}
template <class W>
__device__ std::uint32_t load_weight(const Tensor& t, std::int64_t n) {
    using Stored = typename W::Stored;
    if constexpr (std::is_same_v<Stored, float>) {
        return L::bits(static_cast<const float*>(t.weight)[n]);
    } else {
        return L::load_u16(static_cast<const std::uint16_t*>(t.weight) + n);
    }
}
template <class W>
__device__ void store_weight(const Tensor& t, std::int64_t n, std::uint32_t hi, std::uint32_t lo) {
    using Correction = typename W::Correction;
    if constexpr (std::is_same_v<typename W::Stored, float>) {
        static_cast<float*>(t.weight)[n] = L::from_bits(hi);
    } else {
        L::store_u16(static_cast<std::uint16_t*>(t.weight) + n, hi);
    }
    if constexpr (!std::is_void_v<Correction>) {
        static_cast<Correction*>(t.correction)[n] = static_cast<Correction>(lo);
    }
}

template <class R, class M, class W>
__global__ void step_groups(Tensor t, const StepScalars* scalars, const DitherTables* dither) {
    constexpr int kMoments = R::Moments::kCount > 0 ? R::Moments::kCount : 1;
    const auto group = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (group >= t.groups) return;
    const StepScalars k = *scalars;
    OldMoments<L, M, R> old;
    float old_scales[kMoments] = {}, kept[kMoments][kGroup], largest[kMoments] = {};
    for_each_moment<R>([&](auto n) {
        old.template at<n>().factor = k.moment[n].factor;
        if constexpr (FormatOf<R, M, n>::kGrouped) {
            old_scales[n] = M::scale_to_float(t.scales[n][group]);
            old.template at<n>().factor *= old_scales[n];
        }
    });
    for (int e = 0; e < kGroup; ++e) {
        const auto element = group * kGroup + e;
        const auto old_hi = load_weight<W>(t, element);
        float w = W::template decode<L>(old_hi, load_correction<W>(t, element));
        float g = bfloat16_to_float<L>(t.gradient[element]);
        g = R::template effective_gradient<L>(g, w, k);
        for_each_moment<R>([&](auto n) {
            using Format = FormatOf<R, M, n>;
            const auto* code = static_cast<const typename Format::Code*>(t.codes[n]) + element;
            if constexpr (!Format::kGrouped) {
                old.template at<n>().unit = *code;
            } else if constexpr (R::Moments::template kKind<n> == MomentKind::kSquared) {
                old.template at<n>().unit = Format::template unit<L>(L::load_u8(code));
            } else {
                old.template at<n>().unit = Format::template unit<L>(L::load_i8(code));
            }
        });
        NewMoments<L, R> next;
        if constexpr (requires { R::template direction<L, M>(g, old, next, k); }) {
            w = moved<L>(w, R::template direction<L, M>(g, old, next, k), k);
        } else {
            R::template update<L, M>(g, w, old, next, k);
        }
        std::uint32_t hi = 0, lo = 0;
        W::template encode<L>(w, dither->weight.entry[element % kDitherPeriod], hi, lo);
        bool keep = false;
        if constexpr (W::kProtected) keep = W::template is_special<L>(old_hi);
        if (!keep) store_weight<W>(t, element, hi, lo);
        for_each_moment<R>([&](auto n) {
            constexpr bool kIsRoot =
                FormatOf<R, M, n>::kGrouped && R::Moments::template kKind<n> == MomentKind::kSquared;
            kept[n][e] = kIsRoot ? next.root[n] : next.value[n];
            largest[n] = L::max_ignoring_nan(largest[n], absolute<L>(kept[n][e]));
        });
    }
    for_each_moment<R>([&](auto n) {
        using Format = FormatOf<R, M, n>;
        auto* codes = static_cast<typename Format::Code*>(t.codes[n]) + group * kGroup;
        if constexpr (Format::kGrouped) {
            float scale = 0.0F, encode = 0.0F;
            Format::template new_scale<L>(largest[n], old_scales[n], k.moment[n], scale, encode);
            for (int e = 0; e < kGroup; ++e) {
                const auto place = (group * kGroup + e) % kDitherPeriod;
                codes[e] = static_cast<typename Format::Code>(
                    Format::template code<L>(kept[n][e], encode, dither->moment[n].entry[place]));
            }
            t.scales[n][group] = static_cast<std::uint16_t>(M::scale_bits(scale));
        } else {
            for (int e = 0; e < kGroup; ++e) codes[e] = kept[n][e];
        }
    });
}

/// The storage types alone, in device memory.
__global__ void convert(const float* from, bfloat16* to_bfloat16, float16* to_float16, float* back) {
    const auto n = threadIdx.x;
    to_bfloat16[n] = bfloat16(from[n]);
    to_float16[n] = float16(from[n]);
    back[n] = static_cast<float>(to_bfloat16[n]) + static_cast<float>(to_float16[n]);
}

template <class R, class M, class... W>
void launch(const Tensor& t, const Hyperparameters* h, const std::int64_t* step, StepScalars* k,
            DitherTables* dither) {
    prepare_step<R, M><<<1, 1>>>(h, step, k, dither);
    (step_groups<R, M, W><<<1, 32>>>(t, k, dither), ...);
}

}  // namespace

/// Names every rule with every format of its moments, and every format of weights (which no rule knows) with
/// one rule, so that each is compiled for the device.
void launch_everything(const Tensor& t, const Hyperparameters* h, const std::int64_t* step, StepScalars* k,
                       DitherTables* dither, const float* from, float* to) {
    launch<SgdRule<false>, Float32Moments, Bfloat16Weight24>(t, h, step, k, dither);
    launch<SgdRule<true>, Float32Moments, Bfloat16Weight24>(t, h, step, k, dither);
    launch<AdamRule, Float32Moments, Bfloat16Weight24>(t, h, step, k, dither);
    launch<LionRule, Float32Moments, Bfloat16Weight24>(t, h, step, k, dither);
    launch<SgdRule<true>, NativeMoments, Bfloat16Weight24>(t, h, step, k, dither);
    launch<LionRule, NativeMoments, Bfloat16Weight24>(t, h, step, k, dither);
    launch<AdamRule, NativeMoments, NativeFloat32Weight, Bfloat16Weight24, Bfloat16Weight32,
           Bfloat16WeightDithered, Bfloat16WeightNearest, Float16Weight24, Float16Weight32,
           Float16WeightDithered, Float16WeightNearest>(t, h, step, k, dither);

    using PaperWeight24 = PaperWeight<PaperBfloat16, std::int8_t>;
    launch<PaperSgdRule<false>, Float32Moments, PaperWeight24>(t, h, step, k, dither);
    launch<PaperSgdRule<true>, Float32Moments, PaperWeight24>(t, h, step, k, dither);
    launch<PaperAdamRule, Float32Moments, PaperWeight24>(t, h, step, k, dither);
    launch<PaperLionRule, Float32Moments, PaperWeight24>(t, h, step, k, dither);
    launch<PaperSgdRule<true>, PaperMoments, PaperWeight24>(t, h, step, k, dither);
    launch<PaperLionRule, PaperMoments, PaperWeight24>(t, h, step, k, dither);
    launch<PaperAdamRule, PaperMoments, PaperFloat32Weight, PaperWeight24,
           PaperWeight<PaperBfloat16, std::int16_t>, PaperPlainWeight<PaperBfloat16>,
           PaperWeight<PaperFloat16, std::int8_t>, PaperWeight<PaperFloat16, std::int16_t>,
           PaperPlainWeight<PaperFloat16>>(t, h, step, k, dither);
    convert<<<1, 32>>>(from, static_cast<bfloat16*>(t.weight), static_cast<float16*>(t.correction), to);
}

}  // namespace flashoptim
