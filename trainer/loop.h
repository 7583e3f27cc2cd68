// The training loop: takes options, trains a model and saves it. Commands include this header; it needs no
// torch header.
#pragma once

#include "flashoptim/error.h"
#include "trainer/progress.h"
#include "trainer/train_options.h"

namespace flashoptim::trainer {

/// The loss is NaN or infinite: in a step, in an evaluation, or of the model that was about to be saved.
class NonFiniteLoss : public NonFiniteError {
    using NonFiniteError::NonFiniteError;
};

/// Trains as `options` say and reports to `observer`. Writes metrics.csv (one row per step),
/// checkpoints/step-<number>/ and summary.json to options.out. A run that was killed and resumed with the
/// same number of threads gives the same weights and metrics, bit for bit, as an uninterrupted run, except
/// for times and memory. Sets LibTorch's number of threads. Throws InvalidArgument (options, too little data,
/// an environment variable, threads that cannot be started, too little memory), FormatError (damaged or wrong
/// data or checkpoint), IoError (files) and NonFiniteLoss. With NonFiniteLoss the row of the step is written
/// and no checkpoint follows; if the loss of the step itself is not finite, the step makes no update.
TrainResult train(const TrainOptions& options, TrainObserver& observer);

/// Checks what train() checks before its first step: options, data and device, but not the folder of the run
/// nor a checkpoint to resume from. Builds no model and writes nothing. Throws what train() throws.
void check(const TrainOptions& options);

/// Measures the memory of a run without gradients and optimizer: opens the data, builds the model, runs one
/// forward pass that keeps what backward would need, and returns the peak and the bytes of the weights.
/// Writes nothing.
TrainResult hold_model(const TrainOptions& options);

}  // namespace flashoptim::trainer
