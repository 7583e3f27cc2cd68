// A step allocates nothing: training loops that ran once do not run out of memory later, and no allocator's lock is in the way.
#include <atomic>
#include <cstdlib>
#include <new>

#include "support.h"

namespace {

std::atomic<std::int64_t> allocations = 0;

void* counted(std::size_t bytes, std::size_t alignment) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    if (void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)) return p;
    throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
    return counted(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t& /*nothrow*/) noexcept {
    try {
        return operator new(bytes);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

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
            const auto before = allocations.load();
            for (int t = 0; t < 3; ++t) {
                optimizer.set_gradient_factor(1.0 / (1.0 + optimizer.grad_norm()));
                optimizer.step();
            }
            EXPECT_EQ(allocations.load() - before, 0) << threads << " threads";
        }
    }
}

}  // namespace flashoptim
