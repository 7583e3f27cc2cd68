// The arguments that describe a training run, shared by the subcommands that train. Trains nothing.
#pragma once

#include <CLI/CLI.hpp>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "trainer/options.h"

namespace flashoptim::app {

/// What was typed, before it becomes TrainOptions.
struct RunArguments {
    trainer::TrainOptions options;
    std::string optimizer = "adamw";
    std::string format = "native";
    std::string schedule = "cosine";
    std::optional<double> learning_rate, clip_norm;
    /// Of each hyperparameter of the table of rules what was given; a flag is 0 or 1.
    std::array<std::optional<double>, kHyperparameterFields.size()> numbers;
    std::array<bool, kHyperparameterFields.size()> flags{};
    std::optional<std::int64_t> vocabulary_size;
    std::optional<int> token_width;
    bool tied = false, untied = false;
};

/// Adds the options of data, model and loop. Which optimizer and format is added apart: compare runs several.
void add_run_arguments(CLI::App& command, RunArguments& arguments);
void add_optimizer_arguments(CLI::App& command, RunArguments& arguments);

/// The options that were typed. Throws InvalidArgument for a name that is not known.
trainer::TrainOptions to_options(const RunArguments& arguments);

}  // namespace flashoptim::app
