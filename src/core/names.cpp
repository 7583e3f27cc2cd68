// The names of rules, formats and state buffers in files and messages, and their lookup by name.
#include <algorithm>
#include <array>
#include <utility>

#include "flashoptim/step.h"

namespace flashoptim {

namespace {

constexpr std::array<std::pair<Format, std::string_view>, 3> kFormats = {
    {{Format::kNative, "native"}, {Format::kPaper, "paper"}, {Format::kFloat32, "fp32"}}};

constexpr bool is_in_order() {
    for (std::size_t n = 0; n < kRules.size(); ++n) {
        const auto& traits = kRules[n];
        if (static_cast<std::size_t>(traits.rule) != n || traits.moments.size() > kMaxMoments) return false;
    }
    return true;
}
static_assert(is_in_order(), "the table's rows are in the order of the enumerators");

}  // namespace

std::string_view name_of(Rule rule) { return is_known(rule) ? traits_of(rule).name : "unknown"; }
std::string_view name_of(Format format) {
    const auto* const found = std::ranges::find(kFormats, format, &decltype(kFormats)::value_type::first);
    return found == kFormats.end() ? "unknown" : found->second;
}
std::optional<Rule> rule_named(std::string_view name) {
    const auto* const found = std::ranges::find(kRules, name, &RuleTraits::name);
    return found == kRules.end() ? std::nullopt : std::optional(found->rule);
}
std::optional<Format> format_named(std::string_view name) {
    const auto* const found = std::ranges::find(kFormats, name, &decltype(kFormats)::value_type::second);
    return found == kFormats.end() ? std::nullopt : std::optional(found->first);
}

std::string_view buffer_name(Rule rule, int place) {
    if (!is_known(rule) || place < 0 || place >= kMaxBuffers) return {};
    if (place == kCorrectionPlace) return "error_bits";
    const auto moments = traits_of(rule).moments;
    const auto n = static_cast<std::size_t>(moment_of_place(place));
    if (n >= moments.size()) return {};
    return is_scales_place(place) ? moments[n].scales_name : moments[n].name;
}
std::optional<int> buffer_place(Rule rule, std::string_view name) {
    for (int place = 0; place < kMaxBuffers; ++place) {
        if (!name.empty() && buffer_name(rule, place) == name) return place;
    }
    return std::nullopt;
}

}  // namespace flashoptim
