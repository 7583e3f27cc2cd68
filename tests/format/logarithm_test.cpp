// Logarithm and exponential against the C library's in long double. If one of these fails, the schedules of a
// rule are not those of its authors.
#include "flashoptim/numeric/logarithm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace flashoptim {

namespace {

constexpr double kUnit = std::numeric_limits<double>::epsilon();

/// The distance in units in the last place of the exact value, or of ln 2 / 2 where that is larger.
double distance(double found, long double exact) {
    const long double unit = std::fmax(std::fabs(exact), 0.35L) * kUnit;
    return static_cast<double>(std::fabs(found - exact) / unit);
}
double relative_distance(double found, long double exact) {
    return static_cast<double>(std::fabs(found - exact) / (std::fabs(exact) * kUnit));
}

}  // namespace

TEST(Logarithm, IsThatOfTheCLibrary) {
    for (double x = 1e-300; x < 1e300; x *= 1.0 + 1.0 / 97.0) {
        ASSERT_LE(distance(natural_logarithm(x), std::log(static_cast<long double>(x))), 2.0) << x;
    }
    for (double below = 0.5; below > 3e-16; below *= 0.97) {
        for (const double x : {1.0 - below, 1.0 + below}) {
            ASSERT_LE(relative_distance(natural_logarithm(x), std::log(static_cast<long double>(x))), 3.0)
                << x;
        }
    }
    EXPECT_EQ(natural_logarithm(1.0), 0.0);
}

TEST(Exponential, IsThatOfTheCLibrary) {
    for (double x = -700.0; x <= 700.0; x += 0.0371) {
        ASSERT_LE(relative_distance(exponential(x), std::exp(static_cast<long double>(x))), 2.0) << x;
    }
    for (double x = 0.5; x > 1e-18; x *= 0.93) {
        for (const double signed_x : {x, -x}) {
            const auto exact = std::exp(static_cast<long double>(signed_x));
            ASSERT_LE(relative_distance(exponential(signed_x), exact), 2.0) << signed_x;
        }
    }
    EXPECT_EQ(exponential(0.0), 1.0);
}

}  // namespace flashoptim
