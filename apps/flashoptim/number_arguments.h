// Numbers, lists and flags on the command line. Refuses what CLI11 would round, wrap, skip or misread. Knows
// no subcommand.
#pragma once

#include <CLI/CLI.hpp>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "trainer/exact_number.h"
#include "trainer/limits.h"

namespace flashoptim::app {

/// Splits "a,b" into {"a", "b"}. An empty text has one empty part, and ",," has three.
std::vector<std::string> list_parts(const std::string& text);

/// The name of a list's type in the help, by which check_arguments recognises lists.
inline constexpr const char* kTexts = "TEXT,...";
inline constexpr const char* kNumbers = "UINT,...";

/// Adds an option that takes several values, separated by commas. Its default is `values`, which it replaces.
template <class Value>
CLI::Option* add_list(CLI::App& command, const std::string& name, std::vector<Value>& values,
                      const std::string& description) {
    constexpr bool is_text = std::is_same_v<Value, std::string>;
    const auto read = [&values](const std::vector<std::string>& typed) {
        values.clear();
        for (const auto& text : typed) {
            for (const auto& part : list_parts(text)) {
                if constexpr (is_text) {
                    values.push_back(part);
                } else {  // checked before
                    values.push_back(static_cast<Value>(trainer::exact_whole_number(part).value()));
                }
            }
        }
    };
    std::string shown;
    for (const auto& value : values) {
        shown += shown.empty() ? "" : ",";
        if constexpr (is_text) {
            shown += value;
        } else {
            shown += std::to_string(value);
        }
    }
    auto* option = command.add_option_function<std::vector<std::string>>(name, read, description);
    // One text for each value, without the brackets in which CLI11 skips empty parts.
    option->take_all()->allow_extra_args(false)->type_name(is_text ? kTexts : kNumbers);
    return shown.empty() ? option : option->default_str(shown);
}

/// Sets the bounds of every numeric option of `command`, from the subcommand's own rows, then from those of
/// all runs. For other options it refuses an empty text, and for flags anything but yes or no. Call it when
/// all options have been added. Throws std::logic_error for a number without bounds.
void check_arguments(CLI::App& command, std::span<const trainer::WholeLimits> own = {});

}  // namespace flashoptim::app
