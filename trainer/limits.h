// The bounds of every number that a run is given: one row for each option, read by the checks of TrainOptions
// and by the command line alike. Parses nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "flashoptim/rule/rules.h"

namespace flashoptim::trainer {

/// A whole number, none of which is negative: from `least` to `most`, or one of `choices` where there are
/// some.
struct WholeLimits {
    std::string_view option;  ///< as the command spells it
    std::string_view what;    ///< as a sentence about the option calls it
    std::uint64_t least = 0;
    std::uint64_t most = 0;
    std::span<const std::uint64_t> choices;

    [[nodiscard]] bool allow(std::uint64_t number) const;
    [[nodiscard]] std::string range() const;  ///< "a whole number from 1 to 1024", "16 or 32"
};

/// A finite number from `least` to `most`; each end may be left out.
struct RealLimits {
    std::string_view option;
    std::string_view what;
    double least = 0.0;
    double most = 0.0;  ///< infinity: no more than finite
    bool without_least = false;
    bool without_most = false;

    [[nodiscard]] bool allow(double number) const;
    [[nodiscard]] std::string range() const;  ///< "a finite number of at least 0"
};

/// The option of a hyperparameter: "--eps", "--beta1", "--weight-decay".
std::string option_of(const HyperparameterField& field);

/// All options of a run that are numbers; hyperparameters have the widest range of any rule.
std::span<const WholeLimits> whole_limits();
std::span<const RealLimits> real_limits();

/// The row of an option. Throws std::logic_error for one that is not in the tables.
const WholeLimits& whole_limits_of(std::string_view option);
const RealLimits& real_limits_of(std::string_view option);

/// "the batch size is 0; it must be a whole number from 1 to 1048576".
std::string refusal(std::string_view what, std::string_view shown, std::string_view range);

/// Throws InvalidArgument where the option's row does not allow the value.
void require_within(std::string_view option, std::int64_t value);
void require_within(std::string_view option, double value);

}  // namespace flashoptim::trainer
