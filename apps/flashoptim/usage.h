// Messages for a command line that cannot be understood. CLI11 does the parsing.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace flashoptim::app {

/// One line, without "flashoptim: ", that says why `app` rejected its arguments. An unknown option or
/// subcommand comes first, with the most similar known one; then CLI11's message.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error);

/// One line about the first `--name=` without a value, which CLI11 would take for the option alone. A script
/// with an empty variable produces it. Empty if there is none.
std::string empty_value(int argc, const char* const* argv);

/// The name among `known` that `name` was probably meant to be. Empty if none is similar: a few inserted,
/// lost, changed or swapped letters away, or with the same beginning.
std::string nearest(std::string_view name, const std::vector<std::string>& known);

}  // namespace flashoptim::app
