// The training loop: options in, a trained and saved model out. This header is what a command includes; it
// needs no torch header.
#pragma once

#include "flashoptim/error.h"
#include "trainer/options.h"
#include "trainer/progress.h"

namespace flashoptim::trainer {

/// The loss of a step, of an evaluation or of the model that a checkpoint would hold is NaN or infinite.
class NonFiniteLoss : public NonFiniteError {
    using NonFiniteError::NonFiniteError;
};

/// Trains as `options` say and tells `observer` what happens. In options.out it writes metrics.csv (a row for
/// each step), checkpoints/step-<number>/ and summary.json. A run that was killed and resumed gives the same
/// weights and metrics, bit for bit and apart from times and memory, as one that was not, at the same number
/// of threads. Sets LibTorch's number of threads. Throws InvalidArgument (options, data too short, a variable
/// of the environment, threads that cannot be started, more memory needed than there is), FormatError (data
/// or checkpoint that is not what it should be), IoError (files), and NonFiniteLoss in the step of which it
/// speaks: the row of that step is written, its update is not made where its own loss is it, and no
/// checkpoint follows.
TrainResult train(const TrainOptions& options, TrainObserver& observer);

/// Refuses what train() would refuse of these options, their data and device before its first step, but for
/// the folder of the run and a checkpoint to go on from. Builds no model, writes nothing. Throws as train()
/// does.
void check(const TrainOptions& options);

/// What memory a run needs before it has gradients and optimizer: opens the data, builds the model, runs one
/// forward pass that keeps what backward would need, and returns the peak so far and the bytes of the
/// weights. Writes nothing.
TrainResult hold_model(const TrainOptions& options);

}  // namespace flashoptim::trainer
