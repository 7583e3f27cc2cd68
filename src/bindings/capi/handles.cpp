#include "handles.h"

#include <string>
#include <utility>

#include "flashoptim/error.h"

namespace flashoptim::capi {

namespace {

/// The n-th handle. It is odd, unlike the address of an object, and far from the handles before and after it,
/// so that no pointer or small number is taken for a handle. Multiplication by an odd number is a bijection,
/// so a handle repeats only after all others.
std::uintptr_t number_of(std::uintptr_t n) {
    constexpr auto kGoldenRatio = static_cast<std::uintptr_t>(0x9E3779B97F4A7C15U);  // SplitMix64's increment
    return (n * kGoldenRatio) << 1U | 1U;
}

[[noreturn]] void refuse() {
    throw InvalidArgument(
        "optimizer is no live handle: it was destroyed, or did not come from flashoptim_create of this "
        "library");
}

}  // namespace

Handles& Handles::instance() {
    // Never destroyed, because programs may destroy handles in destructors of static objects.
    static Handles& handles = *std::make_unique<Handles>().release();
    return handles;
}

flashoptim_optimizer* Handles::add(std::shared_ptr<Optimizer> optimizer) {
    const std::lock_guard lock(mutex_);
    const auto number = number_of(made_ + 1);
    live_.emplace(number, std::move(optimizer));
    ++made_;
    // Never dereferenced. NOLINTNEXTLINE(performance-no-int-to-ptr)
    return reinterpret_cast<flashoptim_optimizer*>(number);
}

std::shared_ptr<Optimizer> Handles::at(const flashoptim_optimizer* handle) const {
    if (handle == nullptr)
        throw InvalidArgument("optimizer is NULL: pass a handle that flashoptim_create gave");
    const std::shared_lock lock(mutex_);
    const auto found = live_.find(reinterpret_cast<std::uintptr_t>(handle));
    if (found == live_.end()) refuse();
    return found->second;
}

void Handles::remove(flashoptim_optimizer* handle) {
    if (handle == nullptr) return;
    std::shared_ptr<Optimizer> last;  // freed after the lock is released
    {
        const std::lock_guard lock(mutex_);
        const auto found = live_.find(reinterpret_cast<std::uintptr_t>(handle));
        if (found == live_.end()) refuse();
        last = std::move(found->second);
        live_.erase(found);
    }
}

}  // namespace flashoptim::capi
