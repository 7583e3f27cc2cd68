// The program of main.cpp, saved and loaded.
#include <cstdio>
#include <vector>

#include "flashoptim/checkpoint.h"
#include "flashoptim/optimizer.h"

int main(int count, char** arguments) {
    if (count != 2) return 2;
    std::vector<float> weight(7, 1.0F), gradient(7, 0.5F);
    flashoptim::AdamW optimizer({.learning_rate = 0.1});
    const auto id = optimizer.add_parameter({.data = weight.data(), .shape = {7}}, "weight");
    optimizer.set_gradient(id, {.data = gradient.data(), .shape = {7}});
    optimizer.step();
    flashoptim::save_optimizer(optimizer, arguments[1]);
    flashoptim::load_optimizer(optimizer, arguments[1]);
    std::printf("%lld parameters\n", static_cast<long long>(optimizer.memory_report().parameters));
    return weight[0] < 1.0F ? 0 : 1;
}
