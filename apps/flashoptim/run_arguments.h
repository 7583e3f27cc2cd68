// The arguments that describe a training run, for all subcommands that train. Trains nothing.
#pragma once

#include <CLI/CLI.hpp>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "trainer/train_options.h"

namespace flashoptim::app {

/// The arguments as typed, before they become TrainOptions.
struct RunArguments {
    trainer::TrainOptions options;
    std::string optimizer = "adamw";
    std::string format = "native";
    std::string schedule = "cosine";
    std::optional<double> learning_rate, clip_norm;
    /// The given values of the hyperparameters in the table of rules. A flag is 0 or 1.
    std::array<std::optional<double>, kHyperparameterFields.size()> numbers;
    std::array<bool, kHyperparameterFields.size()> flags{};
    std::optional<std::int64_t> vocabulary_size;
    std::optional<int> token_width;
    bool tied = false, untied = false;
};

/// Adds the options of data, model and loop. Those of optimizer and format are added elsewhere, because
/// compare takes several.
void add_run_arguments(CLI::App& command, RunArguments& arguments);
void add_optimizer_arguments(CLI::App& command, RunArguments& arguments);

/// Converts the arguments to options. Throws InvalidArgument for an unknown name.
trainer::TrainOptions to_options(const RunArguments& arguments);

}  // namespace flashoptim::app
