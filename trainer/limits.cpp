// The tables of bounds and the sentences about them.
#include "trainer/limits.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <deque>
#include <limits>
#include <stdexcept>
#include <vector>

#include "flashoptim/error.h"
#include "flashoptim/system/cpu_count.h"

namespace flashoptim::trainer {
namespace {

constexpr std::uint64_t kMostSteps = 1'000'000'000'000;        // 30 years at a millisecond each
constexpr std::uint64_t kMostRows = std::uint64_t{1} << 20;    // of a micro-batch; micro-batches of a step
constexpr std::uint64_t kMostTokens = std::uint64_t{1} << 24;  // of a row; of a vocabulary
constexpr std::uint64_t kAnySeed = std::numeric_limits<std::uint64_t>::max();
constexpr double kFinite = std::numeric_limits<double>::infinity();
// The loss is a 32-bit number and stays one when it is multiplied. So do the numbers of a rule. A learning
// rate has no bound but that of a double: the loss shows what is too much, which depends on the model.
constexpr double kLeastFloat = std::numeric_limits<float>::min();
constexpr double kMostFloat = std::numeric_limits<float>::max();

constexpr std::array<std::uint64_t, 2> kTokenWidths = {16, 32};
constexpr std::array<std::uint64_t, 3> kMasterBits = {16, 24, 32};

constexpr std::array kWholeLimits = {
    WholeLimits{"--steps", "the number of steps", 1, kMostSteps, {}},
    WholeLimits{"--warmup", "the number of warm-up steps", 0, kMostSteps, {}},
    WholeLimits{"--batch", "the batch size", 1, kMostRows, {}},
    WholeLimits{"--sequence", "the sequence length", 1, kMostTokens, {}},
    WholeLimits{"--accumulation", "the number of accumulated micro-batches", 1, kMostRows, {}},
    WholeLimits{"--vocabulary-size", "the vocabulary size", 1, kMostTokens, {}},
    WholeLimits{"--token-width", "the width of a token", 0, 0, kTokenWidths},
    WholeLimits{"--seed", "the seed", 0, kAnySeed, {}},
    WholeLimits{"--seeds", "a seed", 0, kAnySeed, {}},
    WholeLimits{"--eval-every", "the evaluation interval", 1, kMostSteps, {}},
    WholeLimits{"--eval-batches", "the number of evaluation batches", 1, kMostRows, {}},
    WholeLimits{"--threads", "the number of threads", 0, kMostThreads, {}},
    WholeLimits{"--master-bits", "the number of master weight bits", 0, 0, kMasterBits},
    WholeLimits{"--checkpoint-every", "the checkpoint interval", 0, kMostSteps, {}},
    WholeLimits{"--keep-checkpoints", "the number of kept checkpoints", 0, kMostSteps, {}},
};

constexpr std::array kRealLimits = {
    RealLimits{"--validation-fraction", "the validation fraction", 0.0, 1.0, true, true},
    RealLimits{"--lr", "the learning rate", 0.0, kFinite},
    RealLimits{"--min-lr-ratio", "the minimum learning rate ratio", 0.0, 1.0},
    RealLimits{"--clip", "the clipping norm", 0.0, kFinite},
    RealLimits{"--loss-factor", "the loss factor", kLeastFloat, kMostFloat},
};

// The shortest text that is this value: one just out of its range must not be shown as one within.
template <class Number>
std::string text(Number value) {
    std::array<char, 32> buffer{};
    return {buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr};
}

/// "weight decay" for weight_decay.
std::string words_of(std::string_view name) {
    std::string words(name);
    std::ranges::replace(words, '_', ' ');
    return words;
}

/// The rows that follow from the table of rules. They own the texts that they show.
class HyperparameterLimits {
public:
    HyperparameterLimits() {
        rows_.assign(kRealLimits.begin(), kRealLimits.end());
        for (const auto& field : kHyperparameterFields) {
            if (field.number == nullptr || field == table::kLearningRate) continue;
            double least = kFinite, most = 0.0;
            for (const auto& rule : kRules) {
                const auto* const read = rule.find(field);
                if (read == nullptr) continue;
                least = std::min(least, read->range.lowest);
                most = std::max(most, read->range.highest);
            }
            const auto& option = texts_.emplace_back(option_of(field));
            const auto& what = texts_.emplace_back(words_of(field.name));
            rows_.push_back({option, what, least, std::min(most, kMostFloat)});
        }
    }
    [[nodiscard]] std::span<const RealLimits> rows() const { return rows_; }

private:
    std::deque<std::string> texts_;
    std::vector<RealLimits> rows_;
};

template <class Row>
const Row& row_of(std::span<const Row> rows, std::string_view option) {
    const auto found =
        std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.option == option; });
    if (found == rows.end()) throw std::logic_error("no bounds are known of " + std::string(option));
    return *found;
}

}  // namespace

bool WholeLimits::allow(std::uint64_t number) const {
    if (!choices.empty()) return std::find(choices.begin(), choices.end(), number) != choices.end();
    return least <= number && number <= most;
}

std::string WholeLimits::range() const {
    if (choices.empty()) return "a whole number from " + text(least) + " to " + text(most);
    std::string all;
    for (std::size_t n = 0; n < choices.size(); ++n) {
        all += (n == 0 ? "" : n + 1 == choices.size() ? " or " : ", ") + text(choices[n]);
    }
    return all;
}

bool RealLimits::allow(double number) const {
    if (!std::isfinite(number)) return false;
    return (without_least ? least < number : least <= number) &&
           (without_most ? number < most : number <= most);
}

std::string RealLimits::range() const {
    const std::string lower = (without_least ? "greater than " : "of at least ") + text(least);
    if (std::isinf(most)) return "a finite number " + lower;
    if (without_least || without_most) {
        return "a number " + lower + " and " + (without_most ? "less than " : "at most ") + text(most);
    }
    return "a number from " + text(least) + " to " + text(most);
}

std::span<const WholeLimits> whole_limits() { return kWholeLimits; }
std::span<const RealLimits> real_limits() {
    static const HyperparameterLimits limits;
    return limits.rows();
}

std::string option_of(const HyperparameterField& field) {
    std::string name(field.torch_place < 0 ? field.torch_name : field.name);
    std::ranges::replace(name, '_', '-');
    return "--" + name;
}

const WholeLimits& whole_limits_of(std::string_view option) { return row_of(whole_limits(), option); }
const RealLimits& real_limits_of(std::string_view option) { return row_of(real_limits(), option); }

std::string refusal(std::string_view what, std::string_view shown, std::string_view range) {
    return std::string(what) + " is " + std::string(shown) + "; it must be " + std::string(range);
}

void require_within(std::string_view option, std::int64_t value) {
    const WholeLimits& limits = whole_limits_of(option);
    if (value < 0 || !limits.allow(static_cast<std::uint64_t>(value))) {
        throw InvalidArgument(refusal(limits.what, text(value), limits.range()));
    }
}

void require_within(std::string_view option, double value) {
    const RealLimits& limits = real_limits_of(option);
    if (!limits.allow(value)) throw InvalidArgument(refusal(limits.what, text(value), limits.range()));
}

}  // namespace flashoptim::trainer
