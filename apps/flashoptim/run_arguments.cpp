// From arguments to TrainOptions.
#include "run_arguments.h"

#include "flashoptim/error.h"
#include "trainer/limits.h"

namespace flashoptim::app {

using trainer::TokenWidth;

namespace {

/// "sgd, sgdw, adam".
std::string rule_names() {
    std::string names;
    for (const auto& rule : kRules) names += (names.empty() ? "" : ", ") + trainer::rule_name(rule.rule);
    return names;
}

/// The rules that read a hyperparameter, with their defaults: "Adam, AdamW [0.95], Lion [0.99]".
std::string readers_of(const HyperparameterField& field) {
    std::string readers, value;
    for (const auto& rule : kRules) {
        if (rule.find(field) == nullptr) continue;
        const auto own = CLI::detail::to_string(field.of(trainer::training_defaults(rule.rule)));
        if (!readers.empty())
            readers += own == value ? ", " : field.flag != nullptr ? ", " : " [" + value + "], ";
        readers += rule.name;
        value = own;
    }
    return field.flag != nullptr ? readers : readers + " [" + value + ']';
}

// An empty path is a variable that was not set: as validation data it would mean none.
std::string refuse_empty(const std::string& path) {
    return path.empty() ? "the path is empty; give a file or a folder" : "";
}

}  // namespace

void add_run_arguments(CLI::App& command, RunArguments& arguments) {
    auto& options = arguments.options;
    const std::string data = "Data", model = "Model", loop = "Loop";
    command.option_defaults()->take_last();  // of an option given twice, as scripts do
    command
        .add_option("--data", options.data.path,
                    "A UTF-8 text file or a folder of them (bytes are tokens), or .bin token files as "
                    "nanoGPT and llm.c "
                    "write them")
        ->check(refuse_empty)
        ->required()
        ->group(data);
    command
        .add_option("--validation-data", options.data.validation_path,
                    "Held-out data of its own, instead of a fraction")
        ->check(refuse_empty)
        ->group(data);
    command
        .add_option("--validation-fraction", options.data.validation_fraction,
                    "Part of the end of the data that is held out")
        ->capture_default_str()
        ->group(data);
    command
        .add_option("--token-width", arguments.token_width,
                    "Bits of a token in .bin files without a header [16]")
        ->group(data);

    command
        .add_option("--model", options.model.preset, "Preset; `flashoptim train --list-models` names them")
        ->capture_default_str()
        ->group(model);
    command
        .add_option("--vocabulary-size", arguments.vocabulary_size,
                    "Number of tokens [text: 256; token files: the preset's, or what they need if it is one "
                    "of bytes]")
        ->group(model);
    auto* tied =
        command.add_flag("--tied", arguments.tied, "Output weights are the embedding's")->group(model);
    command.add_flag("--untied", arguments.untied, "Output weights of their own")
        ->excludes(tied)
        ->group(model);
    command
        .add_flag("--activation-checkpointing", options.activation_checkpointing,
                  "Recompute each block in backward instead of keeping its activations")
        ->group(model);

    command.add_option("--steps", options.schedule.total_steps, "Optimizer steps")->required()->group(loop);
    command.add_option("--batch", options.batch_size, "Rows of a micro-batch")
        ->capture_default_str()
        ->group(loop);
    command.add_option("--sequence", options.sequence_length, "Tokens of a row")
        ->capture_default_str()
        ->group(loop);
    command
        .add_option("--accumulation", options.accumulation,
                    "Micro-batches of a step; their gradients are summed in fp32")
        ->capture_default_str()
        ->group(loop);
    command
        .add_option("--lr", arguments.learning_rate,
                    "Peak learning rate: " + readers_of(table::kLearningRate))
        ->group(loop);
    command.add_option("--schedule", arguments.schedule, "constant, cosine or linear")
        ->capture_default_str()
        ->group(loop);
    command
        .add_option("--min-lr-ratio", options.schedule.minimum_ratio,
                    "Learning rate that the decay reaches after the last step, over the peak; the last "
                    "step's own is just above")
        ->capture_default_str()
        ->group(loop);
    command.add_option("--warmup", options.schedule.warmup_steps, "Steps of linear warm-up")
        ->capture_default_str()
        ->group(loop);
    command
        .add_option("--clip", arguments.clip_norm,
                    "Largest norm of all gradients; 0 does not clip [1; with gradient release: 0]")
        ->group(loop);
    command.add_option("--seed", options.seed, "Of initial weights and batches")
        ->capture_default_str()
        ->group(loop);
    command
        .add_option("--loss-factor", options.loss_factor,
                    "Multiplies the loss before backward and is not taken out again")
        ->capture_default_str()
        ->group(loop);
    command.add_option("--eval-every", options.evaluation_interval, "Steps between evaluations")
        ->capture_default_str()
        ->group(loop);
    command.add_option("--eval-batches", options.evaluation_batches, "Batches of an evaluation")
        ->capture_default_str()
        ->group(loop);
    command
        .add_option(
            "--device", options.device,
            "cpu, cuda or cuda:N, which needs a LibTorch and a build with CUDA; a run goes on on another")
        ->capture_default_str()
        ->group(loop);
    command
        .add_option("--threads", options.threads,
                    "Threads of LibTorch and the optimizer; 0: LibTorch's choice")
        ->capture_default_str()
        ->group(loop);

    const std::string optimizer = "Optimizer";
    for (std::size_t n = 0; n < kHyperparameterFields.size(); ++n) {
        const auto& field = kHyperparameterFields[n];
        if (!trainer::is_training_option(field)) continue;
        const auto option = trainer::option_of(field), readers = readers_of(field);
        if (field.flag != nullptr) {
            command.add_flag(option, arguments.flags[n], readers)->group(optimizer);
        } else {
            command.add_option(option, arguments.numbers[n], readers)->group(optimizer);
        }
    }
    command
        .add_option("--master-bits", options.optimizer.master_weight_bits,
                    "Bits of a master weight over bf16: 24 or 32; 16: no correction, dithered (not in paper)")
        ->capture_default_str()
        ->group(optimizer);
}

void add_optimizer_arguments(CLI::App& command, RunArguments& arguments) {
    const std::string optimizer = "Optimizer";
    command.add_option("--optimizer", arguments.optimizer, rule_names())
        ->capture_default_str()
        ->group(optimizer);
    command
        .add_option(
            "--format", arguments.format,
            "native or paper (bf16 weights), or fp32: the reference, fp32 weights under bf16 autocast")
        ->capture_default_str()
        ->group(optimizer);
    command
        .add_flag("--gradient-release", arguments.options.optimizer.gradient_release,
                  "Step each parameter inside backward and free its gradient; does not go with --clip and "
                  "accumulation; on a "
                  "GPU the optimizer is then not timed alone")
        ->group(optimizer);
}

trainer::TrainOptions to_options(const RunArguments& arguments) {
    auto options = arguments.options;
    auto& choice = options.optimizer;
    choice.rule = trainer::parse_rule(arguments.optimizer);
    choice.format = trainer::parse_format(arguments.format);
    choice.hyperparameters = trainer::training_defaults(choice.rule);
    for (std::size_t n = 0; n < kHyperparameterFields.size(); ++n) {
        const auto& field = kHyperparameterFields[n];
        if (arguments.numbers[n]) field.set(choice.hyperparameters, *arguments.numbers[n]);
        if (arguments.flags[n]) field.set(choice.hyperparameters, 1.0);
    }
    options.schedule.kind = trainer::parse_schedule(arguments.schedule);
    options.schedule.peak = arguments.learning_rate.value_or(choice.hyperparameters.learning_rate);
    options.data.raw = {arguments.token_width == 32 ? TokenWidth::kUInt32 : TokenWidth::kUInt16,
                        arguments.token_width.has_value()};
    options.clip_norm = arguments.clip_norm.value_or(choice.gradient_release ? 0.0 : 1.0);
    options.model.vocabulary_size = arguments.vocabulary_size;
    if (arguments.tied || arguments.untied) options.model.tied = arguments.tied;
    return options;
}

}  // namespace flashoptim::app
