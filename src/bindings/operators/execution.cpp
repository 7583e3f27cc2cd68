#include "execution.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <mutex>

#include "operators.h"

namespace flashoptim::operators {

namespace {

class SharedPool {
public:
    std::shared_ptr<ThreadPool> get() {
        const int wanted = fixed_ > 0 ? fixed_.load() : static_cast<int>(torch::stable::get_num_threads());
        const std::lock_guard lock(mutex_);
        if (pool_ == nullptr || pool_->threads() != wanted) pool_ = std::make_shared<ThreadPool>(wanted);
        return pool_;
    }
    void fix(int threads) { fixed_ = threads; }

private:
    std::atomic<int> fixed_ = 0;
    std::mutex mutex_;
    std::shared_ptr<ThreadPool> pool_;
};
SharedPool& shared_pool() {
    static SharedPool pool;
    return pool;
}

std::atomic<Backend>& chosen_backend() {
    static std::atomic<Backend> backend = Backend::kAutomatic;
    return backend;
}

}  // namespace

std::shared_ptr<ThreadPool> current_pool() { return shared_pool().get(); }
Backend current_backend() { return chosen_backend(); }

void set_threads(std::int64_t threads) {
    if (threads < 0 || threads > 4096) refuse("threads is " + std::to_string(threads) + ": give 0 to 4096");
    shared_pool().fix(static_cast<int>(threads));
}

std::int64_t backend() { return static_cast<std::int64_t>(chosen_backend().load()); }
void set_backend(std::int64_t value) {
    const auto wanted = static_cast<Backend>(value);
    const auto available = available_backends();
    const bool is_known = value == 0 || (static_cast<std::int64_t>(wanted) == value &&
                                         std::ranges::find(available, wanted) != available.end());
    if (!is_known) {
        std::string known = "0 (automatic)";
        for (const auto known_backend : available) {
            known += ", " + std::to_string(static_cast<int>(known_backend)) + " (" +
                     std::string(name_of(known_backend)) + ")";
        }
        refuse("backend " + std::to_string(value) + " is not one of this processor: " + known);
    }
    chosen_backend() = wanted;
}

}  // namespace flashoptim::operators
