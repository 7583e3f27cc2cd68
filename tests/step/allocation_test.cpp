// A step allocates nothing: training loops that ran once do not run out of memory later, and no
// allocator's lock is in the way.
#include "../support/step_cases.h"
#include "failing_allocations.h"

namespace flashoptim {

TEST(Allocation, AStepAllocatesNothing) {
    for (const int threads : {1, 2}) {
        for (const auto policy : {NonFinite::kSkipElement, NonFinite::kSkipStep}) {
            OptimizerOptions options;
            options.threads = threads;
            options.nonfinite = policy;
            AdamW optimizer({}, options);
            std::vector<Tensor> weights, gradients;
            for (int n = 0; n < 20; ++n) {
                weights.emplace_back(DType::kBFloat16, std::vector<std::int64_t>{100, 32 + 5 * n});
                gradients.emplace_back(DType::kBFloat16, std::vector<std::int64_t>{100, 32 + 5 * n}).fill([] {
                    return 1.0F;
                });
            }
            for (std::size_t n = 0; n < weights.size(); ++n) {
                optimizer.add_parameter(weights[n].view());
                optimizer.set_gradient(n, gradients[n].view());
            }
            optimizer.set_gradient_factor(1.0 / (1.0 + optimizer.grad_norm()));
            optimizer.step();
            const auto before = allocations_made();
            for (int t = 0; t < 3; ++t) {
                optimizer.set_gradient_factor(1.0 / (1.0 + optimizer.grad_norm()));
                optimizer.step();
            }
            EXPECT_EQ(allocations_made() - before, 0) << threads << " threads";
        }
    }
}

}  // namespace flashoptim
