// What a format does over many steps: whether moments stay unbiased and small updates are kept. If these
// fail, training with the native format drifts away from training with fp32 states although every single step
// is right.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "flashoptim/numeric/bfloat16.h"
#include "flashoptim/optimizer.h"
#include "support.h"

namespace flashoptim::test {
namespace {

// ------------------------------------------------------------------------------------------------ moments

/// Elements of a group are of classes whose gradients differ in size; two of 32 are the group's largest.
constexpr std::array kClassSize = {1.0, 1.0 / 3, 1.0 / 10, 1.0 / 30, 1.0 / 100};
constexpr std::size_t kClasses = kClassSize.size();
std::size_t class_of(std::size_t element) {
    constexpr std::array<std::size_t, 32> kPlaces = {0, 4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2,
                                                     0, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 2, 3, 4};
    return kPlaces[element % kPlaces.size()];
}

/// Sums over time of one element: stored moments against exact ones.
struct Tally {
    double first_error = 0.0;  // sum of m - exact m, in units of the element's gradient
    double root = 0.0, exact_root = 0.0;
};

/// Feeds noisy gradients (mean 0.5, deviation 1, times the element's size) to AdamW with learning rate 0 and
/// compares what it stores with the same averages in double.
std::vector<Tally> run_moments(double beta1, double beta2, std::size_t numel, int steps, int warm_up) {
    OptimizerOptions options;
    options.storage.min_quantized_numel = 0;
    options.storage.min_quantized_numel_1d = 0;
    AdamW optimizer({.learning_rate = 0.0, .beta1 = beta1, .beta2 = beta2, .weight_decay = 0.0}, options);
    const auto rows = static_cast<std::int64_t>(numel / 32);
    std::vector<std::uint16_t> weights(numel, 0);
    std::vector<float> gradients(numel);
    const auto p = optimizer.add_parameter({weights.data(), DType::kBFloat16, {rows, 32}, {}});
    optimizer.set_gradient(p, {gradients.data(), DType::kFloat32, {rows, 32}, {}});

    // Groups of very different sizes: nothing may depend on the unit of the loss.
    std::vector<double> size(numel), m(numel), v(numel);
    for (std::size_t n = 0; n < numel; ++n) {
        size[n] = kClassSize[class_of(n)] * std::pow(10.0, -static_cast<double>(n / 32 % 7));
    }
    Random random(8);
    std::vector<Tally> tallies(numel);
    for (int t = 1; t <= steps; ++t) {
        for (std::size_t n = 0; n < numel; ++n) {
            gradients[n] = static_cast<float>(size[n] * (0.5 + random.normal()));
            const auto g = static_cast<double>(gradients[n]);
            m[n] = beta1 * m[n] + (1.0 - beta1) * g;
            v[n] = beta2 * v[n] + (1.0 - beta2) * g * g;
        }
        optimizer.step();
        if (t <= warm_up) continue;
        const auto stored_m = optimizer.moment(p, 0), stored_v = optimizer.moment(p, 1);
        for (std::size_t n = 0; n < numel; ++n) {
            tallies[n].first_error += (static_cast<double>(stored_m[n]) - m[n]) / size[n];
            tallies[n].root += std::sqrt(static_cast<double>(stored_v[n]));
            tallies[n].exact_root += std::sqrt(v[n]);
        }
    }
    for (auto& tally : tallies) tally.first_error /= steps - warm_up;
    return tallies;
}

/// m: what is stored, averaged over the steps, differs from the exact average by less than the sampling
/// error, that is by less than the standard error of the average gradient of one element, 1 / sqrt(steps) in
/// units of its noise (each gradient enters m with a total weight of 1). Taken as the root mean square over
/// the elements of a class, it bounds their scatter and their common bias. (Both are there: the
/// low-discrepancy dither of an element in consecutive steps is not independent of what its last rounding
/// left, which takes about 0.7 % from m at 1/100 of the group's largest and 0.2 % at 1/30.) sqrt(v): the mean
/// ratio to the exact one is within what the format promises.
void expect_unbiased(double beta1, double beta2) {
    constexpr std::size_t kNumel = kExhaustive ? 4096 : 512;
    constexpr int kSteps = kExhaustive ? 10'000 : 5'000, kWarmUp = 1'000;
    const auto tallies = run_moments(beta1, beta2, kNumel, kSteps, kWarmUp);
    for (std::size_t c = 0; c < kClasses; ++c) {
        double sum = 0.0, squares = 0.0, count = 0.0, root = 0.0;
        for (std::size_t n = 0; n < kNumel; ++n) {
            if (class_of(n) != c) continue;
            count += 1.0;
            sum += tallies[n].first_error;
            squares += tallies[n].first_error * tallies[n].first_error;
            root += tallies[n].root / tallies[n].exact_root;
        }
        const auto what = "elements of 1/" + std::to_string(std::lround(1.0 / kClassSize[c])) +
                          " of the largest, beta2 " + std::to_string(beta2);
        EXPECT_LE(std::sqrt(squares / count), 1.0 / std::sqrt(kSteps - kWarmUp)) << what;
        EXPECT_NEAR(root / count, 1.0, kClassSize[c] < 1.0 / 30 ? 0.01 : 0.005) << what;
        testing::Test::RecordProperty(
            "m_error_" + std::to_string(c),
            std::to_string(sum / count) + " rms " + std::to_string(std::sqrt(squares / count)));
        testing::Test::RecordProperty("root_v_" + std::to_string(c), std::to_string(root / count));
    }
}

TEST(LongRun, MomentsAreUnbiasedOverTenThousandSteps) { expect_unbiased(0.9, 0.999); }
TEST(LongRun, MomentsAreUnbiasedWithShortAverages) { expect_unbiased(0.9, 0.95); }

// -------------------------------------------------------------------------------------------------- drift

/// The part of a steady drift that master weights keep: every weight is asked to move by `relative` of itself
/// in each of `steps` steps; the mean of what happened over what was asked for.
double drift_kept(Format format, int master_bits, double relative, int steps) {
    constexpr std::int64_t kNumel = 8192;
    OptimizerOptions options;
    options.storage.format = format;
    options.storage.master_weight_bits = master_bits;
    SGD optimizer({.learning_rate = relative}, options);
    std::vector<std::uint16_t> weights(kNumel);
    std::vector<float> masters(kNumel), gradients(kNumel);
    Random random(9);
    // Fractions evenly over a binade, in a few binades and of both signs.
    for (std::size_t n = 0; n < masters.size(); ++n) {
        const double size = std::ldexp(1.0 + random.uniform(), -static_cast<int>(n % 8));
        masters[n] = static_cast<float>(n % 16 < 8 ? size : -size);
    }
    const auto p = optimizer.add_parameter({weights.data(), DType::kBFloat16, {kNumel}, {}});
    optimizer.set_master(p, masters);
    masters = optimizer.master(p);
    for (std::size_t n = 0; n < masters.size(); ++n) gradients[n] = -masters[n];
    optimizer.set_gradient(p, {gradients.data(), DType::kFloat32, {kNumel}, {}});
    for (int t = 0; t < steps; ++t) optimizer.step();
    const auto moved = optimizer.master(p);
    double sum = 0.0;
    for (std::size_t n = 0; n < masters.size(); ++n) {
        sum += (static_cast<double>(moved[n]) / static_cast<double>(masters[n]) - 1.0) / (relative * steps);
    }
    return sum / static_cast<double>(kNumel);
}

/// formats.md: 96 / 100 / 100 % at 1e-7, 1e-6, 1e-5 with 24 bits. The 4 % are fp32's, not the format's: 1e-7
/// of a weight 1.f is 0.84 (1 + f) units in its last place, which the sum w - lr g rounds to 1 below f = 0.79
/// and to 2 above; the mean of rounded over exact is (1/0.84) (integral of df / (1 + f) over [0, 0.79] + 2
/// times that over [0.79, 1]) = 0.96. The same sum at 1e-6 (8.4 to 16.8 units) gives 0.999 and at 1e-5 more.
/// Dither is unbiased, so nothing is lost beyond that; its error after the last step is at most one unit of
/// the 24-bit grid, 1.5e-5, in a drift of steps * relative, and it averages out over 8,192 weights.
TEST(LongRun, TwentyFourBitMastersKeepSmallUpdates) {
    EXPECT_NEAR(drift_kept(Format::kNative, 24, 1e-7, 1000), 0.96, 0.01);
    EXPECT_NEAR(drift_kept(Format::kNative, 24, 1e-6, 1000), 1.00, 0.01);
    EXPECT_NEAR(drift_kept(Format::kNative, 24, 1e-5, 1000), 1.00, 0.01);
}
/// 32 bits are fp32, and 16 bits with dither keep what two bytes can: the same on average.
TEST(LongRun, OtherMastersKeepSmallUpdates) {
    EXPECT_NEAR(drift_kept(Format::kNative, 32, 1e-7, 1000), 0.96, 0.01);
    EXPECT_NEAR(drift_kept(Format::kNative, 32, 1e-6, 1000), 1.00, 0.01);
    EXPECT_NEAR(drift_kept(Format::kNative, 16, 1e-5, 1000), 1.00, 0.02);
}
/// The paper's 24 bits round to nearest, so an update below half a unit of the correction (1.5e-5 of a weight
/// at the lower end of its binade, 0.8e-5 at the upper) is lost in every step. At 1e-5 those weights move
/// whose fraction f has 1 + f > 1.54, each by a whole unit: (integral of 3.07 / (1 + f) over [0.54, 1]) =
/// 0.80 of what was asked for.
TEST(LongRun, ThePaperFormatLosesSmallUpdates) {
    EXPECT_LE(drift_kept(Format::kPaper, 24, 1e-7, 1000), 0.01);
    EXPECT_LE(drift_kept(Format::kPaper, 24, 1e-6, 1000), 0.01);
    EXPECT_LE(drift_kept(Format::kPaper, 24, 1e-5, 1000), 0.85);
}

}  // namespace
}  // namespace flashoptim::test
