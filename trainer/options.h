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

/// A rule's hyperparameters for language models, if none are given: the defaults of the table of rules, with
/// other learning rates, and the weight decay, momentum and beta2 that such models are trained with.
Hyperparameters training_defaults(Rule rule);

/// Whether a run is given this hyperparameter by itself. The learning rate is the schedule's, and a loss is
/// not maximised.
bool is_training_option(const HyperparameterField& field);

/// Which optimizer, and how it stores what it keeps.
struct OptimizerChoice {
    Rule rule = Rule::kAdamW;
    /// The learning rates and what the rule does not read have no effect. Decay is of matrices: norms and
    /// other one-dimensional weights never decay.
    Hyperparameters hyperparameters = training_defaults(rule);
    /// kFloat32 is the reference: fp32 weights under bf16 autocast, fp32 gradients and moments. The others
    /// train bf16 weights.
    Format format = Format::kNative;
    /// 16, 24, 32 or 0, as StorageOptions; not read by the fp32 reference, which has fp32 weights.
    int master_weight_bits = 24;
    bool gradient_release = false;  ///< step inside backward and free each gradient at once
};

/// "sgd", "sgdw", "adam", "adamw", "lion"; throws InvalidArgument naming the known ones.
Rule parse_rule(std::string_view name);
std::string rule_name(Rule rule);

/// "native", "paper", "fp32"; throws InvalidArgument naming the known ones.
Format parse_format(std::string_view name);

/// What the optimizer reads of a choice, under a schedule with this peak, and how it stores its state.
Hyperparameters hyperparameters_of(const OptimizerChoice& choice, double peak);
StorageOptions storage_of(const OptimizerChoice& choice);

/// One training run.
struct TrainOptions {
    /// Without a vocabulary size: 256 for text; for tokens the preset's own, which one of bytes raises to
    /// what the tokens need.
    ModelOptions model;
    DataOptions data;
    OptimizerChoice optimizer;
    Schedule schedule;  ///< its total_steps is the length of the run

    std::int64_t batch_size = 16;  ///< rows of a micro-batch
    std::int64_t sequence_length = 128;
    std::int64_t accumulation = 1;  ///< micro-batches of a step; more than one sums gradients in fp32
    double clip_norm = 1.0;         ///< of all gradients together; 0 switches clipping off
    double loss_factor = 1.0;       ///< multiplies the loss before backward and is not taken out again
    std::uint64_t seed = 0;         ///< of initial weights and batches
    bool activation_checkpointing = false;
    /// "cpu", "cuda" or "cuda:1": of the model, its data and the optimizer. Checkpoints do not depend on it.
    std::string device = "cpu";
    int threads = 0;  ///< of LibTorch and optimizer; 0: as many as LibTorch takes by itself

    std::int64_t evaluation_interval = 100;  ///< steps; the last step is always evaluated
    std::int64_t evaluation_batches = 8;     ///< of batch_size rows, the same in every evaluation

    std::filesystem::path out;  ///< empty: nothing is written
    /// Allow to replace what another run, or this one after the resumed step, left in `out`.
    bool overwrite = false;
    std::int64_t checkpoint_interval = 0;  ///< steps; 0: none but the last
    bool final_checkpoint = true;          ///< write one after the last step
    std::int64_t kept_checkpoints = 0;     ///< newest that stay when another is complete; 0: all
    /// A checkpoint, or the `out` of a run for its newest one; empty: start anew.
    std::filesystem::path resume;
    bool allow_other_data = false;  ///< resume though the data is not that of the checkpoint
};

/// Throws InvalidArgument naming the first option that is out of its bounds (limits.h), or two that exclude
/// each other: gradient release with accumulation or clipping, numbers that the rule or the format does not
/// take.
void validate(const TrainOptions& options);

}  // namespace flashoptim::trainer
