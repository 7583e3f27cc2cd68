// Validators that read a number exactly, before CLI11 converts it.
#include "number_arguments.h"

#include <algorithm>
#include <optional>
#include <string>

#include "trainer/exact_number.h"

namespace flashoptim::app {
namespace {

using trainer::RealLimits;
using trainer::WholeLimits;

/// Empty where the text is allowed, as CLI11 wants it.
template <class Limits>
std::string complaint(const Limits& limits, const std::string& text, bool is_allowed) {
    if (is_allowed) return {};
    return trainer::refusal(limits.what, "'" + text + "'", limits.range());
}

CLI::Validator exactly(const WholeLimits& limits) {
    const auto check = [&limits](std::string& text) {
        const auto number = trainer::exact_whole_number(text);
        auto said = complaint(limits, text, number && limits.allow(*number));
        if (said.empty()) text = std::to_string(*number);  // CLI11 takes a leading 0 for octal
        return said;
    };
    return {check, ""};
}

CLI::Validator exactly(const RealLimits& limits) {
    const auto check = [&limits](std::string& text) {
        const auto number = trainer::exact_real_number(text);
        return complaint(limits, text, number && limits.allow(*number));
    };
    return {check, ""};
}

CLI::Validator not_empty() {
    return {[](std::string& text) {
                return text.empty() ? std::string("its value is empty; give one, or leave the option out")
                                    : std::string();
            },
            ""};
}

/// What is asked of one value, of each part of a list.
CLI::Validator in_list(const CLI::Validator& one) {
    const auto check = [one](std::string& text) {
        for (auto part : list_parts(text)) {
            if (auto said = one(part); !said.empty()) return said;
        }
        return std::string();
    };
    return {check, ""};
}

/// CLI11 takes any number for yes or no.
CLI::Validator yes_or_no() {
    const auto check = [](std::string& text) {
        const auto word = CLI::detail::to_lower(text);
        for (const char* known : {"true", "false", "yes", "no", "on", "off", "1", "0"}) {
            if (word == known) return std::string();
        }
        return "it is a flag, which '" + text + "' is no value of; give it alone, or =true or =false";
    };
    return {check, ""};
}

template <class Limits>
const Limits* row_of(std::span<const Limits> rows, const std::string& name) {
    const auto row =
        std::find_if(rows.begin(), rows.end(), [&](const Limits& limits) { return limits.option == name; });
    return row == rows.end() ? nullptr : &*row;
}

}  // namespace

std::vector<std::string> list_parts(const std::string& text) {
    std::vector<std::string> parts(1);
    for (const char letter : text) {
        if (letter == ',') {
            parts.emplace_back();
        } else {
            parts.back() += letter;
        }
    }
    return parts;
}

void check_arguments(CLI::App& command, std::span<const WholeLimits> own) {
    for (auto* option : command.get_options()) {
        const auto name = option->get_name(false, false), type = option->get_type_name();
        const auto* const own_row = row_of(own, name);
        const auto* const whole = own_row != nullptr ? own_row : row_of(trainer::whole_limits(), name);
        if (option->get_expected_max() == 0) {
            if (name != "--help") option->check(yes_or_no());
        } else if (whole != nullptr) {
            option->transform(type == kNumbers ? in_list(exactly(*whole)) : exactly(*whole));
        } else if (const auto* real = row_of(trainer::real_limits(), name)) {
            option->check(exactly(*real));
        } else if (type == "TEXT" || type == kTexts) {
            if (option->get_expected_min() > 0)
                option->check(type == kTexts ? in_list(not_empty()) : not_empty());
        } else {
            throw std::logic_error(name + " takes a number (" + type + ") that has no bounds");
        }
    }
}

}  // namespace flashoptim::app
