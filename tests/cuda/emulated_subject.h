// What the tests of the CUDA kernels step with, where the kernels are emulated: what cuda::StepPlan does, in memory of the host.
#pragma once

#include <optional>

#include "emulation.h"
#include "tensors.h"

namespace flashoptim::cuda {

struct Subject {
    NonFinite nonfinite = NonFinite::kSkipElement;
    // Values that the kernels read from device memory.
    std::optional<std::int64_t> steps_done;
    std::optional<double> learning_rate;
    std::optional<float> grad_scale, clip_coefficient, found_inf;
    std::vector<std::uint64_t> bad_elements;  // of the last step

    static bool is_here() { return true; }

    void step(TensorSet& set) {
        const bool stops = nonfinite != NonFinite::kSkipElement;
        prepare(set);
        if (stops) launch(&Launchers::count_bad, stops);
        launch(&Launchers::step, stops);
        if (steps_done) advance(&*steps_done, control_, stops);
    }
    std::uint64_t count_bad(TensorSet& set) {
        prepare(set);
        launch(&Launchers::count_bad, false);
        return control_.bad_gradients;
    }
    [[nodiscard]] bool was_skipped() const { return control_.is_skipped != 0 || control_.bad_gradients != 0; }
    double norm(TensorSet& set) {
        prepare(set);
        std::vector<double> sums(static_cast<std::size_t>(list_.norm_blocks()));
        const NormLaunch launch{list_.tensors().data(), static_cast<std::int64_t>(list_.tensors().size()),
                                list_.norm_blocks(), &control_, sums.data()};
        double total = 0.0;
        for (std::int64_t block = 0; block < launch.blocks; ++block) {
            double parts[kNormSums];
            for (int part = 0; part < kNormSums; ++part) parts[part] = norm_part(launch, block, part);
            total += norm_total(parts);
        }
        return double_sqrt(total);
    }

private:
    template <class T>
    static const T* address_of(const std::optional<T>& value) {
        return value ? &*value : nullptr;
    }
    void prepare(TensorSet& set) {
        list_.set(set.items(), &emulated_launchers);
        kinds_.resize(list_.kinds().size());
        bad_elements.assign(set.items().size(), 0);
        for (std::size_t begin = 0; begin < kinds_.size() || begin == 0; begin += kKindsInLaunch) {
            Preparation p;
            p.count =
                static_cast<std::uint32_t>(std::min<std::size_t>(kKindsInLaunch, kinds_.size() - begin));
            std::copy_n(list_.kinds().begin() + static_cast<std::ptrdiff_t>(begin), p.count, p.kinds);
            p.to = kinds_.data() + begin;
            p.control = &control_;
            p.from = {address_of(steps_done), address_of(learning_rate), address_of(grad_scale),
                      address_of(clip_coefficient), address_of(found_inf)};
            for (std::uint32_t n = 0; n < p.count; ++n) prepare_kind(p, n);
            prepare_control(p);
        }
    }
    void launch(Launcher Launchers::* kernel, bool stops_at_bad_gradients) {
        for (const auto& range : list_.ranges()) {
            const Launch launch{list_.chunks().data() + range.begin,
                                list_.tensors().data(),
                                kinds_.data(),
                                &control_,
                                bad_elements.data(),
                                range.count,
                                stops_at_bad_gradients};
            (range.launchers.*kernel)(launch, nullptr);
        }
    }

    TensorList list_;
    std::vector<Kind> kinds_;
    Control control_;
};

}  // namespace flashoptim::cuda
