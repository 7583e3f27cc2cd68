// Names of choices and the checks of a run's options. Opens no file.
#include "trainer/options.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "flashoptim/error.h"

namespace flashoptim::trainer {
namespace {

/// The one of `values` that is called `text`.
template <typename Value, std::size_t kCount, typename NameOf>
Value parse(const std::array<Value, kCount>& values, NameOf name, const char* what, std::string_view text) {
    std::string known;
    for (const Value value : values) {
        if (name(value) == text) {
            return value;
        }
        known += (known.empty() ? "" : ", ") + std::string(name(value));
    }
    throw InvalidArgument(std::string(what) + " '" + std::string(text) + "' is not known; choose one of " +
                          known);
}

void at_least(std::int64_t value, std::int64_t least, const char* name) {
    if (value < least) {
        throw InvalidArgument(std::string(name) + " is " + std::to_string(value) + "; it must be at least " +
                              std::to_string(least));
    }
}

}  // namespace

Rule parse_rule(std::string_view name) {
    constexpr std::array kRules = {Rule::kSGD, Rule::kSGDW, Rule::kAdam, Rule::kAdamW, Rule::kLion};
    return parse(kRules, rule_name, "optimizer", name);
}
std::string rule_name(Rule rule) {
    std::string name(name_of(rule));
    std::transform(name.begin(), name.end(), name.begin(), [](char letter) {
        return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
    });
    return name;
}

Format parse_format(std::string_view name) {
    constexpr std::array kFormats = {Format::kNative, Format::kPaper, Format::kFloat32};
    return parse(kFormats, [](Format format) { return name_of(format); }, "format", name);
}

void validate(const TrainOptions& options) {
    validate(llama_config(options.model));
    validate(options.schedule);
    at_least(options.batch_size, 1, "the batch size");
    at_least(options.sequence_length, 1, "the sequence length");
    at_least(options.accumulation, 1, "the number of accumulated micro-batches");
    at_least(options.evaluation_interval, 1, "the evaluation interval");
    at_least(options.evaluation_batches, 1, "the number of evaluation batches");
    at_least(options.checkpoint_interval, 0, "the checkpoint interval");
    at_least(options.kept_checkpoints, 0, "the number of kept checkpoints");
    at_least(options.threads, 0, "the number of threads");
    if (!(options.clip_norm >= 0.0) || !std::isfinite(options.clip_norm)) {
        throw InvalidArgument("the clipping norm is " + std::to_string(options.clip_norm) +
                              "; it must be finite and not negative (0 switches clipping off)");
    }
    if (!(options.loss_factor > 0.0) || !std::isfinite(options.loss_factor)) {
        throw InvalidArgument("the loss factor is " + std::to_string(options.loss_factor) +
                              "; it must be finite and greater than 0");
    }
    if (options.optimizer.gradient_release && options.accumulation > 1) {
        throw InvalidArgument(
            "gradient release frees each gradient inside backward, so nothing is left to accumulate; "
            "use an accumulation of 1 or switch gradient release off");
    }
    if (options.optimizer.gradient_release && options.clip_norm > 0.0) {
        throw InvalidArgument(
            "gradient release steps before the norm of all gradients is known, so it cannot clip by it; "
            "use a clipping norm of 0 or switch gradient release off");
    }
    if (options.checkpoint_interval > 0 && options.out.empty()) {
        throw InvalidArgument("checkpoints need a place; give an out folder or a checkpoint interval of 0");
    }
}

}  // namespace flashoptim::trainer
