// Names of choices and the checks of a run's options. Opens no file.
#include "trainer/train_options.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "flashoptim/error.h"
#include "flashoptim/optimizer.h"
#include "flashoptim/system/checked_arithmetic.h"
#include "trainer/limits.h"

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

// How many tokens a run sees is counted in its metrics.
void require_countable_tokens(const TrainOptions& options) {
    std::optional<std::int64_t> tokens = options.schedule.total_steps;
    for (const std::int64_t factor : {options.accumulation, options.batch_size, options.sequence_length}) {
        tokens = tokens ? checked_multiply(*tokens, factor) : tokens;
    }
    if (!tokens) {
        throw InvalidArgument(
            "the tokens of all steps, which are steps x micro-batches x rows x tokens of a row, are more "
            "than " +
            std::to_string(std::numeric_limits<std::int64_t>::max()) +
            "; take a smaller number of steps, accumulation, batch size or sequence length");
    }
}

}  // namespace

Rule parse_rule(std::string_view name) {
    std::array<Rule, kRules.size()> rules{};
    std::ranges::transform(kRules, rules.begin(), &RuleTraits::rule);
    return parse(rules, rule_name, "optimizer", name);
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

Hyperparameters training_defaults(Rule rule) {
    auto h = default_hyperparameters(rule);
    const RuleTraits& traits = traits_of(rule);
    if (traits.decay != Decay::kCoupled) h.weight_decay = 0.1;
    switch (rule) {
        case Rule::kSGD:
        case Rule::kSGDW:
            h.learning_rate = 0.1;
            h.momentum = 0.9;
            break;
        case Rule::kAdam:
        case Rule::kAdamW:
            h.beta2 = 0.95;
            break;
        case Rule::kLion:
            h.learning_rate = 3e-4;
            break;
        default:
            break;
    }
    return h;
}

bool is_training_option(const HyperparameterField& field) {
    return !(field == table::kLearningRate || field == table::kInitialLearningRate ||
             field == table::kMaximize);
}

Hyperparameters hyperparameters_of(const OptimizerChoice& choice, double peak) {
    auto h = choice.hyperparameters;
    h.learning_rate = peak;
    h.initial_learning_rate = peak;
    h.maximize = false;
    return h;
}

StorageOptions storage_of(const OptimizerChoice& choice) {
    StorageOptions storage;
    storage.format = choice.format;
    storage.master_weight_bits = choice.master_weight_bits;
    return storage;
}

void validate(const OptimizerChoice& choice, double learning_rate) {
    for (const auto& field : kHyperparameterFields) {
        if (field.number != nullptr && is_training_option(field)) {
            require_within(option_of(field), field.of(choice.hyperparameters));
        }
    }
    // Rules and formats have ranges of their own.
    const Hyperparameters read = hyperparameters_of(choice, learning_rate);
    check_hyperparameters(choice.rule, read);
    if (choice.format == Format::kPaper && choice.master_weight_bits == 16) {
        throw InvalidArgument(
            "the number of master weight bits is 16, which the paper format does not have; take 24 or 32, or "
            "the native format");
    }
    const DType dtype = choice.format == Format::kFloat32 ? DType::kFloat32 : DType::kBFloat16;
    const TensorView any_weight{nullptr, dtype, {0}, {}};
    static_cast<void>(
        plan_storage(choice.rule, read, storage_of(choice), dtype, layout_of(any_weight), "the optimizer"));
}

void validate(const TrainOptions& options) {
    validate(llama_config(options.model));
    validate(options.schedule);
    validate(options.optimizer, options.schedule.peak);
    require_within("--batch", options.batch_size);
    require_within("--sequence", options.sequence_length);
    require_within("--accumulation", options.accumulation);
    if (options.model.vocabulary_size) require_within("--vocabulary-size", *options.model.vocabulary_size);
    require_within("--eval-every", options.evaluation_interval);
    require_within("--eval-batches", options.evaluation_batches);
    require_within("--checkpoint-every", options.checkpoint_interval);
    require_within("--keep-checkpoints", options.kept_checkpoints);
    require_within("--threads", std::int64_t{options.threads});
    require_within("--clip", options.clip_norm);
    require_within("--loss-factor", options.loss_factor);
    require_countable_tokens(options);
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
