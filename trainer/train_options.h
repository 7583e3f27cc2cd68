// Everything that describes one training run. Plain data: no torch header, no reading of arguments.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "flashoptim/step.h"
#include "trainer/data/token_source.h"
#include "trainer/models/registry.h"
#include "trainer/schedule.h"

namespace flashoptim::trainer {

/// The default hyperparameters of a rule for language models: those of the table of rules, but with the
/// learning rate, weight decay, momentum and beta2 that are usual for such models.
Hyperparameters training_defaults(Rule rule);

/// Whether a run has an option for this hyperparameter. The learning rate belongs to the schedule, and a loss
/// is never maximised.
bool is_training_option(const HyperparameterField& field);

/// The optimizer and the storage of its state.
struct OptimizerChoice {
    Rule rule = Rule::kAdamW;
    /// The learning rates and what the rule does not read have no effect. Decay is of matrices: norms and
    /// other one-dimensional weights never decay.
    Hyperparameters hyperparameters = training_defaults(rule);
    /// kFloat32 is the reference: fp32 weights under bf16 autocast, fp32 gradients and moments. The others
    /// train bf16 weights.
    Format format = Format::kNative;
    /// 16, 24, 32 or 0, as in StorageOptions. Ignored by the fp32 reference, whose weights are fp32.
    int master_weight_bits = 24;
    bool gradient_release = false;  ///< step inside backward and free each gradient at once
};

/// "sgd", "sgdw", "adam", "adamw", "lion"; throws InvalidArgument naming the known ones.
Rule parse_rule(std::string_view name);
std::string rule_name(Rule rule);

/// "native", "paper", "fp32"; throws InvalidArgument naming the known ones.
Format parse_format(std::string_view name);

/// The hyperparameters of a choice, under a schedule with this peak, and the storage of its state.
Hyperparameters hyperparameters_of(const OptimizerChoice& choice, double peak);
StorageOptions storage_of(const OptimizerChoice& choice);

/// One training run.
struct TrainOptions {
    /// The default vocabulary size is 256 for text. For tokens it is the preset's; a preset for bytes uses
    /// what the tokens need.
    ModelOptions model;
    DataOptions data;
    OptimizerChoice optimizer;
    Schedule schedule;  ///< its total_steps is the length of the run

    std::int64_t batch_size = 16;  ///< rows of a micro-batch
    std::int64_t sequence_length = 128;
    std::int64_t accumulation = 1;  ///< micro-batches of a step; more than one sums gradients in fp32
    double clip_norm = 1.0;         ///< of all gradients together; 0 switches clipping off
    double loss_factor = 1.0;       ///< multiplies the loss before backward; gradients are not divided by it
    std::uint64_t seed = 0;         ///< of initial weights and batches
    bool activation_checkpointing = false;
    /// "cpu", "cuda" or "cuda:1", for model, data and optimizer. Checkpoints do not depend on it.
    std::string device = "cpu";
    int threads = 0;  ///< of LibTorch and the optimizer; 0: LibTorch's default

    std::int64_t evaluation_interval = 100;  ///< steps; the last step is always evaluated
    std::int64_t evaluation_batches = 8;     ///< of batch_size rows, the same in every evaluation

    std::filesystem::path out;  ///< empty: nothing is written
    /// Allows replacing what another run, or this run after the resumed step, has written in `out`.
    bool overwrite = false;
    std::int64_t checkpoint_interval = 0;  ///< steps; 0: none but the last
    bool final_checkpoint = true;          ///< write one after the last step
    std::int64_t kept_checkpoints = 0;     ///< number of newest checkpoints to keep; 0: all
    /// A checkpoint, or the `out` of a run (its newest checkpoint). Empty: start from nothing.
    std::filesystem::path resume;
    bool allow_other_data = false;  ///< resume even if the data differs from the checkpoint's
};

/// Throws an InvalidArgument that names the first option out of its bounds (limits.h), or two that exclude
/// each other: gradient release with accumulation or clipping, or a number that the rule or the format does
/// not accept.
void validate(const TrainOptions& options);

}  // namespace flashoptim::trainer
