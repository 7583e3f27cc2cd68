// Every rule in every format and weight dtype trains a network: the shortest answer to "does it work".
#include <torch/nn.h>

#include "support.h"

namespace flashoptim::libtorch {
namespace {

double loss_after_training(Rule rule, Format format, torch::Dtype dtype, int steps) {
    at::set_num_threads(1);  // a network this small only waits for threads
    torch::manual_seed(11);
    torch::nn::Sequential model(torch::nn::Linear(16, 64), torch::nn::Tanh(), torch::nn::Linear(64, 4));
    cast_model(*model, dtype);
    const auto input = torch::randn({128, 16});
    const auto target = torch::tanh(torch::matmul(input, torch::randn({16, 4}) * 0.5));
    const double rate = rule == Rule::kSGD || rule == Rule::kSGDW ? 0.05 : rule == Rule::kLion ? 1e-3 : 5e-3;
    const auto optimizer = make_optimizer(rule, format, model->parameters(), rate);
    double loss = 0.0;
    for (int step = 0; step <= steps; ++step) {
        optimizer->zero_grad();
        const auto value = torch::mse_loss(model->forward(input.to(dtype)).to(torch::kFloat32), target);
        value.backward();
        optimizer->step();
        loss = value.item<double>();
    }
    return loss;
}

TEST(Training, LowersTheLoss) {
    for_each_kind([](Rule rule, Format format) {
        for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kFloat16}) {
            const auto at_first = loss_after_training(rule, format, dtype, 0);
            EXPECT_LE(loss_after_training(rule, format, dtype, 100), at_first / 4) << dtype;
        }
    });
}

}  // namespace
}  // namespace flashoptim::libtorch
