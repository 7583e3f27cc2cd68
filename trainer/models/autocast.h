// The autocast state of the calling thread as a scope, because LibTorch offers only the single switches.
// Never decides which precision a model uses.
#pragma once

#include <ATen/autocast_mode.h>

namespace flashoptim::trainer {

/// Switches autocast of one device type on (to `dtype`) or off for the lifetime of the object. Cast
/// weights are not cached: every weight is used once in a forward pass, so a cache would only keep all
/// copies alive until its end.
class AutocastScope {
public:
    AutocastScope(at::DeviceType device, bool enabled, at::ScalarType dtype)
        : device_(device),
          outer_enabled_(at::autocast::is_autocast_enabled(device)),
          outer_cache_(at::autocast::is_autocast_cache_enabled()),
          outer_dtype_(at::autocast::get_autocast_dtype(device)) {
        at::autocast::set_autocast_enabled(device_, enabled);
        at::autocast::set_autocast_dtype(device_, dtype);
        at::autocast::set_autocast_cache_enabled(false);
    }
    ~AutocastScope() {
        at::autocast::set_autocast_enabled(device_, outer_enabled_);
        at::autocast::set_autocast_dtype(device_, outer_dtype_);
        at::autocast::set_autocast_cache_enabled(outer_cache_);
    }
    AutocastScope(const AutocastScope&) = delete;
    AutocastScope& operator=(const AutocastScope&) = delete;

private:
    at::DeviceType device_;
    bool outer_enabled_;
    bool outer_cache_;
    at::ScalarType outer_dtype_;
};

}  // namespace flashoptim::trainer
