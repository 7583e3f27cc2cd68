// The live optimizers of the C interface. A handle is a number cast to a pointer. It is looked up, never
// dereferenced, so a handle that was destroyed or never was one is found without reading freed memory.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "flashoptim/c_api.h"
#include "flashoptim/optimizer.h"

namespace flashoptim::capi {

/// Every function may be called from any thread.
class Handles {
public:
    static Handles& instance();

    flashoptim_optimizer* add(std::shared_ptr<Optimizer> optimizer);
    /// Lives until the caller lets go of it, whatever other threads destroy. @throws InvalidArgument
    /// for what is no live handle
    [[nodiscard]] std::shared_ptr<Optimizer> at(const flashoptim_optimizer* handle) const;
    /// @throws InvalidArgument for what is no live handle; NULL is none, and no error
    void remove(flashoptim_optimizer* handle);

private:
    mutable std::shared_mutex mutex_;
    std::unordered_map<std::uintptr_t, std::shared_ptr<Optimizer>> live_;
    std::uintptr_t made_ = 0;
};

}  // namespace flashoptim::capi
