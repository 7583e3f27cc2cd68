// Comparisons of results in which a NaN is never lost. std::max(a, NaN) is a, NaN differs from every
// number, and equal bits may be those of two NaNs: a test that is written with those alone passes when
// training has come to nothing.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>

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

/// That no weight and no moment of an optimizer is NaN: what equal bits cannot tell.
inline ::testing::AssertionResult holds_numbers(const Optimizer& optimizer) {
    for (Optimizer::ParameterId id = 0; id < optimizer.parameter_count(); ++id) {
        const char* const held = has_nan(optimizer.master(id))      ? "weight"
                                 : has_nan(optimizer.moment(id, 0)) ? "first moment"
                                 : has_nan(optimizer.moment(id, 1)) ? "second moment"
                                                                    : nullptr;
        if (held != nullptr) {
            return ::testing::AssertionFailure()
                   << "the " << held << " of " << optimizer.name(id) << " holds a NaN";
        }
    }
    return ::testing::AssertionSuccess();
}

}  // namespace flashoptim::test
