// The names of rules and formats, as files and messages spell them, and the way back.
#include <array>
#include <utility>

#include "flashoptim/step.h"

namespace flashoptim {

namespace {

template <class T, std::size_t kCount>
using Names = std::array<std::pair<T, std::string_view>, kCount>;

constexpr Names<Rule, 5> kRules = {{{Rule::kSGD, "SGD"},
                                    {Rule::kSGDW, "SGDW"},
                                    {Rule::kAdam, "Adam"},
                                    {Rule::kAdamW, "AdamW"},
                                    {Rule::kLion, "Lion"}}};
constexpr Names<Format, 3> kFormats = {
    {{Format::kNative, "native"}, {Format::kPaper, "paper"}, {Format::kFloat32, "fp32"}}};

template <class T, std::size_t kCount>
std::string_view name_in(const Names<T, kCount>& names, T wanted) {
    for (const auto& [value, name] : names) {
        if (value == wanted) return name;
    }
    return "unknown";
}

template <class T, std::size_t kCount>
std::optional<T> value_in(const Names<T, kCount>& names, std::string_view wanted) {
    for (const auto& [value, name] : names) {
        if (name == wanted) return value;
    }
    return std::nullopt;
}

}  // namespace

std::string_view name_of(Rule rule) { return name_in(kRules, rule); }
std::string_view name_of(Format format) { return name_in(kFormats, format); }
std::optional<Rule> rule_named(std::string_view name) { return value_in(kRules, name); }
std::optional<Format> format_named(std::string_view name) { return value_in(kFormats, name); }

}  // namespace flashoptim
