// Comparisons of results in which a NaN is never lost. std::max(a, NaN) is a, NaN differs from every
// number, and equal bits may be those of two NaNs: a test that is written with those alone passes when
// training has come to nothing.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "flashoptim/optimizer.h"

namespace flashoptim::test {

/// The largest of magnitudes. 0 where there is none, NaN where one of them is NaN.
class Largest {
public:
    void add(double magnitude) {
        if (!(magnitude <= value_) && !std::isnan(value_)) value_ = magnitude;
    }
    [[nodiscard]] double value() const { return value_; }

private:
    double value_ = 0.0;
};

template <class Values>
double largest_magnitude(const Values& values) {
    Largest largest;
    for (const auto value : values) largest.add(std::fabs(static_cast<double>(value)));
    return largest.value();
}

/// Largest distance of two values in the same place. NaN where one is NaN, infinity where the sizes differ.
template <class A, class B>
double largest_distance(const A& a, const B& b) {
    if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
    Largest largest;
    for (std::size_t n = 0; n < a.size(); ++n) {
        largest.add(std::fabs(static_cast<double>(a[n]) - static_cast<double>(b[n])));
    }
    return largest.value();
}

template <class Values>
bool has_nan(const Values& values) {
    return std::isnan(largest_magnitude(values));
}

/// Whether two runs of values are all numbers and differ somewhere.
template <class A, class B>
bool has_moved(const A& before, const B& after) {
    return largest_distance(before, after) > 0.0;
}

inline bool has_moved(float before, float after) { return before < after || before > after; }

/// All moments of a parameter, as many as its rule has.
inline std::vector<std::vector<float>> moments_of(const Optimizer& optimizer, Optimizer::ParameterId id) {
    std::vector<std::vector<float>> moments;
    for (std::size_t n = 0; n < traits_of(optimizer.rule()).moments.size(); ++n) {
        moments.push_back(optimizer.moment(id, static_cast<int>(n)));
    }
    return moments;
}

/// That no weight and no moment of an optimizer is NaN: what equal bits cannot tell.
inline ::testing::AssertionResult holds_numbers(const Optimizer& optimizer) {
    for (Optimizer::ParameterId id = 0; id < optimizer.parameter_count(); ++id) {
        const auto holds_nan = [&](std::string_view held) {
            return ::testing::AssertionFailure()
                   << "the " << held << " of " << optimizer.name(id) << " holds a NaN";
        };
        if (has_nan(optimizer.master(id))) return holds_nan("weight");
        const auto moments = moments_of(optimizer, id);
        for (std::size_t n = 0; n < moments.size(); ++n) {
            if (has_nan(moments[n])) return holds_nan(traits_of(optimizer.rule()).moments[n].name);
        }
    }
    return ::testing::AssertionSuccess();
}

}  // namespace flashoptim::test
