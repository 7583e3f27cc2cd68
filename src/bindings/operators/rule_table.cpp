// The table of rules as JSON. The Python package reads it and repeats none of it.
#include <array>
#include <charconv>
#include <cmath>
#include <string>

#include "flashoptim/rule/rules.h"
#include "operators.h"

namespace flashoptim::operators {

namespace {

std::string in_quotes(std::string_view text) { return '"' + std::string(text) + '"'; }

/// A number in JSON; null for infinity, which JSON lacks.
std::string number(double value) {
    if (std::isinf(value)) return "null";
    std::array<char, 32> text{};
    const auto end = std::to_chars(text.data(), text.data() + text.size(), value);
    return {text.data(), end.ptr};
}
std::string flag(bool value) { return value ? "true" : "false"; }

std::string to_json(const RuleTraits& traits);
std::string to_json(const HyperparameterTraits& traits);

std::string to_json(const MomentTraits& moment) {
    std::string present = "always";
    for (const auto& field : kHyperparameterFields) {
        if (moment.needs != nullptr && field.number == moment.needs) present = field.name;
    }
    return "{\"name\": " + in_quotes(moment.name) +
           ", \"kind\": " + std::to_string(static_cast<int>(moment.kind)) +
           ", \"present\": " + in_quotes(present) + "}";
}

std::string to_json(const HyperparameterTraits& traits) {
    const auto& [field, usual, range, in_python] = traits;
    return "{\"name\": " + in_quotes(field.name) + ", \"python\": " + in_quotes(field.torch_name) +
           ", \"flag\": " + flag(field.flag != nullptr) + ", \"default\": " + number(usual) +
           ", \"python_default\": " + (in_python ? number(*in_python) : "null") +
           ", \"minimum\": " + number(range.lowest) + ", \"minimum_open\": false" +
           ", \"maximum\": " + number(range.highest) + ", \"maximum_open\": " + flag(range.excludes_highest) +
           "}";
}

/// `values` as a JSON list, each by to_json.
template <class Range>
std::string list_of(const Range& values) {
    std::string text;
    for (const auto& value : values) {
        if (!text.empty()) text += ", ";
        text += to_json(value);
    }
    return '[' + text + ']';
}

std::string to_json(const RuleTraits& traits) {
    return "{\"name\": " + in_quotes(traits.name) +
           ", \"decay\": " + in_quotes(traits.decay == Decay::kCoupled ? "coupled" : "decoupled") +
           ", \"paper\": " + flag(traits.has_paper_order) + ", \"moments\": " + list_of(traits.moments) +
           ", \"hyperparameters\": " + list_of(traits.reads) + "}";
}

}  // namespace

std::string rule_table() {
    std::string columns;
    for (const auto& field : kHyperparameterFields) {
        if (!columns.empty()) columns += ", ";
        columns += in_quotes(field.name);
    }
    return "{\"columns\": [" + columns + "], \"rules\": " + list_of(kRules) + "}";
}

}  // namespace flashoptim::operators
