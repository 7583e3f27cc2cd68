// Makes the chosen optimizer for a model's parameters. Nothing else in the trainer knows the optimizer
// classes.
#pragma once

#include <memory>

#include "flashoptim/libtorch.h"
#include "trainer/models/model.h"
#include "trainer/train_options.h"

namespace flashoptim::trainer {

/// The precision in which a model is trained with this format.
Precision precision_for(Format format);

/// Makes the optimizer that `choice` describes, with this learning rate. It has two groups: matrices, with
/// weight decay, and one-dimensional parameters, without. Throws InvalidArgument if a hyperparameter is out
/// of range.
std::unique_ptr<libtorch::FlashOptimizer> make_optimizer(const OptimizerChoice& choice, double learning_rate,
                                                         const Model& model);

/// Sets the learning rate of every group.
void set_learning_rate(torch::optim::Optimizer& optimizer, double learning_rate);

}  // namespace flashoptim::trainer
