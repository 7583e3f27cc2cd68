// The live optimizers of the C interface. A handle is a number cast to a pointer. It is looked up and never
// dereferenced, so an invalid or destroyed handle is detected without reading freed memory.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "flashoptim/c_api.h"
#include "flashoptim/optimizer.h"

namespace flashoptim::capi {

/// Thread-safe.
class Handles {
public:
    static Handles& instance();

    flashoptim_optimizer* add(std::shared_ptr<Optimizer> optimizer);
    /// The optimizer of a handle. It lives while the caller holds the pointer, even if another thread
    /// destroys the handle. @throws InvalidArgument for an invalid handle.
    [[nodiscard]] std::shared_ptr<Optimizer> at(const flashoptim_optimizer* handle) const;
    /// Destroys a handle. NULL does nothing. @throws InvalidArgument for an invalid handle.
    void remove(flashoptim_optimizer* handle);

private:
    mutable std::shared_mutex mutex_;
    std::unordered_map<std::uintptr_t, std::shared_ptr<Optimizer>> live_;
    std::uintptr_t made_ = 0;
};

}  // namespace flashoptim::capi
