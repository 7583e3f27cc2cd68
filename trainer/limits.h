// The bounds of every number among a run's options: one row per option. The checks of TrainOptions and the
// command line both read this table. Parses nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "flashoptim/rule/rules.h"

namespace flashoptim::trainer {

/// A whole number that is not negative: from `least` to `most`, or one of `choices` if there are any.
struct WholeLimits {
    std::string_view option;  ///< the option's name on the command line
    std::string_view what;    ///< the option's name in a sentence
    std::uint64_t least = 0;
    std::uint64_t most = 0;
    std::span<const std::uint64_t> choices;

    [[nodiscard]] bool allow(std::uint64_t number) const;
    [[nodiscard]] std::string range() const;  ///< "a whole number from 1 to 1024", "16 or 32"
};

/// A finite number from `least` to `most`. Either end may be excluded.
struct RealLimits {
    std::string_view option;
    std::string_view what;
    double least = 0.0;
    double most = 0.0;  ///< infinity: any finite number
    bool without_least = false;
    bool without_most = false;

    [[nodiscard]] bool allow(double number) const;
    [[nodiscard]] std::string range() const;  ///< "a finite number of at least 0"
};

/// The option's name for a hyperparameter: "--eps", "--beta1", "--weight-decay".
std::string option_of(const HyperparameterField& field);

/// All options of a run that are numbers. A hyperparameter has the widest range that any rule allows.
std::span<const WholeLimits> whole_limits();
std::span<const RealLimits> real_limits();

/// The row of an option. Throws std::logic_error if the option is not in the tables.
const WholeLimits& whole_limits_of(std::string_view option);
const RealLimits& real_limits_of(std::string_view option);

/// The message for a wrong value: "the batch size is 0; it must be a whole number from 1 to 1048576".
std::string refusal(std::string_view what, std::string_view shown, std::string_view range);

/// Throws InvalidArgument if the option's row does not allow the value.
void require_within(std::string_view option, std::int64_t value);
void require_within(std::string_view option, double value);

}  // namespace flashoptim::trainer
