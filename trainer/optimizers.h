// From a choice to an optimizer over a model's parameters. The only place of the trainer that
// knows the optimizer classes.
#pragma once

#include <memory>

#include "flashoptim/libtorch.h"
#include "trainer/models/model.h"
#include "trainer/options.h"

namespace flashoptim::trainer {

/// The precision in which a model is trained with that format.
Precision precision_for(Format format);

/// The optimizer that `choice` describes, with learning rate `learning_rate`: a group of the matrices, which
/// decay, and one of the one-dimensional parameters, which do not. Throws InvalidArgument for a
/// hyperparameter out of its range.
std::unique_ptr<libtorch::FlashOptimizer> make_optimizer(const OptimizerChoice& choice, double learning_rate,
                                                         const Model& model);

/// Sets the learning rate of every group.
void set_learning_rate(torch::optim::Optimizer& optimizer, double learning_rate);

}  // namespace flashoptim::trainer
