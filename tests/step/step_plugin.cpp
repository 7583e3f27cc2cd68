// A library with an optimizer inside, as a host loads and unloads it.
#include <vector>

#include "flashoptim/flashoptim.h"

extern "C" int step_in_plugin() {
    std::vector<float> weight(500'000), gradient(weight.size(), 1.0F);
    const auto size = static_cast<std::int64_t>(weight.size());
    flashoptim::OptimizerOptions options;
    options.threads = 3;
    flashoptim::SGD optimizer({.learning_rate = 1.0}, options);
    optimizer.add_parameter({weight.data(), flashoptim::DType::kFloat32, {size}});
    optimizer.set_gradient(0, {gradient.data(), flashoptim::DType::kFloat32, {size}});
    optimizer.step();
    for (const float w : weight) {
        if (w != -1.0F) return 1;
    }
    return 0;
}
