// The program of main.cpp in LibTorch.
#include <cstdio>

#include "flashoptim/libtorch.h"

int main() {
    auto weight = torch::ones({7}, torch::requires_grad());
    flashoptim::libtorch::AdamW optimizer({weight}, flashoptim::libtorch::AdamWOptions(0.1));
    weight.sum().backward();
    optimizer.step();
    std::printf("%lld parameters\n", static_cast<long long>(weight.numel()));
    return weight[0].item<float>() < 1.0F ? 0 : 1;
}
