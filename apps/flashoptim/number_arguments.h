// Numbers, lists and flags on the command line: what CLI11 would round, wrap, skip or take as something else
// is refused here. Knows no subcommand.
#pragma once

#include <CLI/CLI.hpp>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "trainer/exact_number.h"
#include "trainer/limits.h"

namespace flashoptim::app {

/// "a,b" as {"a", "b"}; an empty text is one empty part, and ",," three.
std::vector<std::string> list_parts(const std::string& text);

/// The type of a list in the help; check_arguments knows it by it.
inline constexpr const char* kTexts = "TEXT,...";
inline constexpr const char* kNumbers = "UINT,...";

/// An option that takes several values, separated by commas. It shows those of `values` as its default, and
/// replaces them.
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
    // One text each, without the brackets in which CLI11 skips empty parts.
    option->take_all()->allow_extra_args(false)->type_name(is_text ? kTexts : kNumbers);
    return shown.empty() ? option : option->default_str(shown);
}

/// Gives every option of `command` that takes a number its bounds, from the rows of its own and then from
/// those of all runs; refuses an empty text for all others, and for a flag what does not say yes or no. Call
/// it when all options are there. Throws std::logic_error for a number without bounds.
void check_arguments(CLI::App& command, std::span<const trainer::WholeLimits> own = {});

}  // namespace flashoptim::app
