// Checks hyperparameters against the table of rules.
#include <array>
#include <charconv>
#include <cmath>
#include <string>

#include "flashoptim/optimizer.h"

namespace flashoptim {

namespace {

/// The shortest text that reads back as this value. Rounded text could show a value that is just outside its
/// range as one inside it.
std::string text_of(double value) {
    std::array<char, 32> text{};
    const auto end = std::to_chars(text.data(), text.data() + text.size(), value);
    return {text.data(), end.ptr};
}

std::string text_of(const Range& range) {
    if (std::isinf(range.highest)) {
        return range.lowest == 0.0 ? "finite and not negative"
                                   : "finite and at least " + text_of(range.lowest);
    }
    if (range.excludes_highest) {
        return "at least " + text_of(range.lowest) + " and less than " + text_of(range.highest);
    }
    return "between " + text_of(range.lowest) + " and " + text_of(range.highest);
}

void check(const HyperparameterField& field, double value, bool is_right, const std::string& range) {
    if (is_right) return;
    throw InvalidArgument(std::string(field.name) + " is " + text_of(value) + ": it must be " + range);
}

/// The names of the rules that have fully_decoupled weight decay, for an error message.
std::string rules_with_full_decoupling() {
    std::string names;
    for (const auto& traits : kRules) {
        if (traits.find(table::kFullyDecoupled) == nullptr) continue;
        if (!names.empty()) names += ", ";
        names += traits.name;
    }
    return names;
}

}  // namespace

void check_hyperparameters(Rule rule, const Hyperparameters& h) {
    if (!is_known(rule)) {
        throw InvalidArgument("rule " + std::to_string(static_cast<int>(rule)) +
                              " does not exist: use an enumerator of the header");
    }
    const auto& traits = traits_of(rule);
    // Numbers that the rule does not read are checked too. They are saved with the others, and saved text
    // cannot hold a NaN or an infinity.
    for (const auto& field : kHyperparameterFields) {
        if (field.number == nullptr) continue;
        const auto* const read = traits.find(field);
        const double value = field.of(h);
        if (read != nullptr) {
            check(field, value, read->range.has(value), text_of(read->range));
        } else {
            check(field, value, std::isfinite(value), "finite");
        }
    }
    if (traits.find(table::kNesterov) != nullptr && h.nesterov && (h.momentum == 0.0 || h.dampening != 0.0)) {
        throw InvalidArgument("nesterov is set: it needs a momentum and no dampening");
    }
    if (h.fully_decoupled && traits.find(table::kFullyDecoupled) == nullptr) {
        throw InvalidArgument("fully_decoupled is set: it needs a rule with decoupled weight decay (" +
                              rules_with_full_decoupling() + ")");
    }
    check(table::kInitialLearningRate, h.initial_learning_rate,
          table::kNotNegative.has(h.initial_learning_rate), text_of(table::kNotNegative));
    if (h.fully_decoupled && h.weight_decay != 0.0 && h.initial_learning_rate == 0.0) {
        throw InvalidArgument(
            "initial_learning_rate is 0: fully_decoupled weight decay is measured by it; set it (LibTorch: "
            "initial_lr) to the schedule's peak");
    }
}

}  // namespace flashoptim
