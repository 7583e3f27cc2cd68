// Construction of the optimizers. Never steps one.
#include "trainer/optimizers.h"

#include <utility>
#include <vector>

namespace flashoptim::trainer {
namespace {

using torch::optim::OptimizerParamGroup;

template <class Optimizer, class Options>
std::unique_ptr<libtorch::FlashOptimizer> build(Options options, const OptimizerChoice& choice,
                                                const Model& model) {
    options.weight_decay(choice.weight_decay)
        .format(choice.format)
        .master_weight_bits(choice.master_weight_bits);
    Options without_decay = options;
    without_decay.weight_decay(0.0);
    std::vector<torch::Tensor> matrices;
    std::vector<torch::Tensor> vectors;
    for (const torch::Tensor& parameter : model.parameters()) {
        (parameter.dim() < 2 ? vectors : matrices).push_back(parameter);
    }
    std::vector<OptimizerParamGroup> groups;
    groups.emplace_back(std::move(matrices), std::make_unique<Options>(options));
    if (!vectors.empty()) {
        groups.emplace_back(std::move(vectors), std::make_unique<Options>(without_decay));
    }
    return std::make_unique<Optimizer>(groups, options);
}

template <class Optimizer, class Options>
std::unique_ptr<libtorch::FlashOptimizer> build_sgd(double learning_rate, const OptimizerChoice& choice,
                                                    const Model& model) {
    Options options(learning_rate);
    options.momentum(choice.momentum).nesterov(choice.nesterov);
    return build<Optimizer>(options, choice, model);
}

template <class Optimizer, class Options>
std::unique_ptr<libtorch::FlashOptimizer> build_adam(double learning_rate, const OptimizerChoice& choice,
                                                     const Model& model) {
    Options options(learning_rate);
    options.betas({choice.beta1, choice.beta2}).eps(choice.epsilon);
    return build<Optimizer>(options, choice, model);
}

}  // namespace

Precision precision_for(Format format) {
    return format == Format::kFloat32 ? Precision::kFp32Autocast : Precision::kBfloat16;
}

std::unique_ptr<libtorch::FlashOptimizer> make_optimizer(const OptimizerChoice& choice, double learning_rate,
                                                         const Model& model) {
    switch (choice.rule) {
        case Rule::kSGD:
            return build_sgd<libtorch::SGD, libtorch::SGDOptions>(learning_rate, choice, model);
        case Rule::kSGDW:
            return build_sgd<libtorch::SGDW, libtorch::SGDWOptions>(learning_rate, choice, model);
        case Rule::kAdam:
            return build_adam<libtorch::Adam, libtorch::AdamOptions>(learning_rate, choice, model);
        case Rule::kAdamW:
            return build_adam<libtorch::AdamW, libtorch::AdamWOptions>(learning_rate, choice, model);
        case Rule::kLion: {
            libtorch::LionOptions options(learning_rate);
            options.betas({choice.beta1, choice.beta2});
            return build<libtorch::Lion>(options, choice, model);
        }
    }
    throw InvalidArgument("optimizer: the rule is none of the known ones");
}

void set_learning_rate(torch::optim::Optimizer& optimizer, double learning_rate) {
    for (OptimizerParamGroup& group : optimizer.param_groups()) {
        group.options().set_lr(learning_rate);
    }
}

}  // namespace flashoptim::trainer
