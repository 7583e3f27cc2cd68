// The work of a thread block on its chunk, written once for the device and for the emulation in the tests.
// The Team parameter is what differs: how the threads run (each), how the threads of a group exchange maxima
// and scales, and how they add to a counter. add() is for a count that is almost always 0, so each thread
// adds alone; add_of_all() sums over a warp first.
#pragma once

#include "cuda/thread_step.h"

namespace flashoptim::cuda {

/// Steps a chunk. The team's threads are ThreadStep<R, M, W>.
template <class Team>
FLASHOPTIM_INLINE void step_chunk(Team& team, const Launch& launch, std::uint32_t block) {
    using Thread = typename Team::Thread;
    const Control& control = *launch.control;
    if (control.is_skipped != 0) return;
    if (launch.stops_at_bad_gradients && control.bad_gradients != 0) return;
    const Chunk chunk = launch.chunks[block];
    const ChunkView view = Thread::view_of(launch.tensors[chunk.tensor], chunk, launch.groups_in_chunk);
    const DeviceTensor& t = view.t;
    const Kind& kind = launch.kinds[t.kind];
    const StepScalars k = kind.scalars;
    const std::uint32_t step = kind.step;
    const float factor = gradient_factor(t, control);
    for (int begin = 0; begin < view.groups; begin += kGroupsInPass) {
        team.each([&](Thread& thread, int n) {
            const int bad = thread.update(t, k, kind.scalars, factor, view.run_of(begin, n));
            if (bad != 0) team.add(launch.bad_elements + chunk.tensor, static_cast<unsigned>(bad));
        });
        if constexpr (Thread::kHasGroups) {
            team.share_maxima();
            team.each([&](Thread& thread, int n) { thread.choose_scale(k, n); });
            if constexpr (Thread::kScales > 1) team.share_scales();
        }
        team.each([&](Thread& thread, int n) { thread.finish(t, step, n); });
    }
}

/// A thread of the counting kernel. For counting, rules differ in their L2 term only, and the scalars have
/// that term. So R may be any rule with the same order of operations.
template <class R, class W>
class ThreadCount : BlockTypes<R, Float32Moments, W> {
    using Types = BlockTypes<R, Float32Moments, W>;
    using Types::kHasCorrection;

public:
    static FLASHOPTIM_INLINE ChunkView view_of(const DeviceTensor& t, const Chunk& chunk, int groups) {
        constexpr int kNoCodes[kMaxMoments] = {};
        return {t,       chunk, groups, sizeof(typename Types::Stored), sizeof(typename Types::Correction),
                kNoCodes};
    }
    /// Number of bad gradients of the run.
    FLASHOPTIM_INLINE int count(const DeviceTensor& t, const StepScalars& k, float factor,
                                const Run& run) const {
        if (!t.checks_gradient) return 0;
        float gradient[kElements];
        Words<float> stored;
        if (run.is_whole) {
            load_gradient<true>(stored, t, run);
        } else {
            load_gradient<false>(stored, t, run);
        }
        convert_gradient(gradient, stored, t.gradient_dtype, factor);
        int bad = 0;
        for (int e = 0; e < run.count; ++e) {
            const float w = k.adds_l2 ? weight_at(t, run.element + static_cast<unsigned>(e)) : 0.0F;
            if (is_bad_gradient(R::template effective_gradient<ScalarLanes>(gradient[e], w, k))) ++bad;
        }
        return bad;
    }

private:
    static FLASHOPTIM_INLINE float weight_at(const DeviceTensor& t, unsigned element) {
        using S = ScalarLanes;
        std::uint32_t high = 0, low = 0;
        if constexpr (std::is_same_v<typename Types::Stored, float>) {
            high = S::bits(static_cast<const float*>(t.weight)[element]);
        } else {
            high = static_cast<const std::uint16_t*>(t.weight)[element];
        }
        if constexpr (kHasCorrection) {
            const auto* corrections = static_cast<const typename Types::Correction*>(t.correction);
            low = static_cast<std::uint32_t>(static_cast<std::int32_t>(corrections[element]));
        }
        return W::template decode<S>(high, low);
    }
};

/// Counts the bad gradients of a chunk and changes nothing else. The team's threads are ThreadCount<R, W>.
template <class Team>
FLASHOPTIM_INLINE void count_chunk(Team& team, const Launch& launch, std::uint32_t block) {
    const Control& control = *launch.control;
    if (control.is_skipped != 0) return;
    const Chunk chunk = launch.chunks[block];
    const ChunkView view = Team::Thread::view_of(launch.tensors[chunk.tensor], chunk, launch.groups_in_chunk);
    const StepScalars& k = launch.kinds[view.t.kind].scalars;
    const float factor = gradient_factor(view.t, control);
    team.each([&](typename Team::Thread& thread, int n) {
        int bad = 0;
        for (int begin = 0; begin < view.groups; begin += kGroupsInPass) {
            bad += thread.count(view.t, k, factor, view.run_of(begin, n));
        }
        team.add_of_all(static_cast<unsigned>(bad), launch.bad_elements + chunk.tensor,
                        &launch.control->bad_gradients);
    });
}

}  // namespace flashoptim::cuda
