// What to say of a command line that cannot be understood. Parses nothing: CLI11 did.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace flashoptim::app {

/// One line, without "flashoptim: ", on why `app` could not take its arguments: an option or subcommand that
/// nobody knows comes first, with the known one that was near; then what CLI11 says.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error);

/// One line on the first `--name=` without a value, which CLI11 takes for the option alone: a script whose
/// variable is empty has typed it. Empty if there is none.
std::string empty_value(int argc, const char* const* argv);

/// The one of `known` that `name` was probably meant to be; empty if none is near. Near is what few inserted,
/// lost, changed or swapped letters part, or what begins like it.
std::string nearest(std::string_view name, const std::vector<std::string>& known);

}  // namespace flashoptim::app
