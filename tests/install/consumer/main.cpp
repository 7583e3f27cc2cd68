// The ten lines of a program that uses the installed core. Never more than that.
#include <cstdio>
#include <vector>

#include "flashoptim/optimizer.h"

int main() {
    std::vector<float> weight(7, 1.0F), gradient(7, 0.5F);
    flashoptim::AdamW optimizer({.learning_rate = 0.1});
    const auto id = optimizer.add_parameter({.data = weight.data(), .shape = {7}}, "weight");
    optimizer.set_gradient(id, {.data = gradient.data(), .shape = {7}});
    optimizer.step();
    std::printf("%lld parameters\n", static_cast<long long>(optimizer.memory_report().parameters));
    return weight[0] < 1.0F ? 0 : 1;
}
