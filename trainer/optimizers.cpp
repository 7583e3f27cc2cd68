// Construction of the optimizers. Never steps one.
#include "trainer/optimizers.h"

#include <utility>
#include <vector>

namespace flashoptim::trainer {
namespace {

using torch::optim::OptimizerParamGroup;

}  // namespace

Precision precision_for(Format format) {
    return format == Format::kFloat32 ? Precision::kFp32Autocast : Precision::kBfloat16;
}

std::unique_ptr<libtorch::FlashOptimizer> make_optimizer(const OptimizerChoice& choice, double learning_rate,
                                                         const Model& model) {
    auto options = libtorch::AnyOptions(choice.rule, hyperparameters_of(choice, learning_rate))
                       .format(choice.format)
                       .master_weight_bits(choice.master_weight_bits);
    auto without_decay = options;
    without_decay.weight_decay(0.0);
    std::vector<torch::Tensor> matrices, vectors;
    for (const torch::Tensor& parameter : model.parameters()) {
        (parameter.dim() < 2 ? vectors : matrices).push_back(parameter);
    }
    std::vector<OptimizerParamGroup> groups;
    groups.emplace_back(std::move(matrices), std::make_unique<libtorch::AnyOptions>(options));
    if (!vectors.empty()) {
        groups.emplace_back(std::move(vectors), std::make_unique<libtorch::AnyOptions>(without_decay));
    }
    return std::make_unique<libtorch::AnyOptimizer>(groups, options);
}

void set_learning_rate(torch::optim::Optimizer& optimizer, double learning_rate) {
    for (OptimizerParamGroup& group : optimizer.param_groups()) {
        group.options().set_lr(learning_rate);
    }
}

}  // namespace flashoptim::trainer
